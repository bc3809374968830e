from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError
from pretrain.models.generate.config import Sampling

if TYPE_CHECKING:
    from pretrain.data.tokenizer import Tokenizer
    from pretrain.opened import OpenRun


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Continue a prompt.

    examples:
      pretrain generate smoke --prompt "def main(" --max-tokens 40
      pretrain generate smoke --prompt "import " --temperature 0 --json
      pretrain generate exported/ --prompt "Once" --temperature 0.8 --top-p 0.95 --seed 1
    """

    run: arguments.Run
    prompt: str
    max_tokens: int = 64
    """At most; an end-of-text token ends it sooner."""
    temperature: float = 0.8
    """0 takes the most probable token."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = None
    """Only the fewest tokens that are together this probable."""
    min_p: float | None = None
    """Only tokens at least this times as probable as the most probable one."""
    seed: int = 0
    step: int | None = None
    """Of the checkpoint. Default: the latest."""
    json: arguments.Json = False

    def __call__(self) -> None:
        sampling = sampling_of(self)
        run = runs.find(self.run)
        import jax

        from pretrain.models.generate.decode import generate
        from pretrain.opened import open_run

        opened = open_run(run, step=self.step)
        out = generate(
            opened.model,
            [prompt_ids(opened, self.prompt)],
            max_tokens=self.max_tokens,
            sampling=sampling,
            key=jax.random.key(self.seed),
            stop_tokens=stop_tokens(opened),
        )
        tokens = out.tokens[0]
        text = tokenizer_of(opened).decode(tokens)
        facts = {"text": text, "tokens": tokens, "logprobs": out.logprobs[0]}
        output.show(facts, self.json, [self.prompt + text])


def sampling_of(options) -> Sampling:
    """Raises UserError with every option out of range."""
    sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, min_p=options.min_p)
    problems = [message for holds, message in sampling.checks() if not holds]
    if options.max_tokens < 1:
        problems.append(f"max_tokens={options.max_tokens}: expected at least 1")
    if options.seed < 0:
        problems.append(f"seed={options.seed}: expected 0 or more")
    if problems:
        raise UserError(*problems)
    return sampling


def prompt_ids(opened: "OpenRun", text: str) -> list[int]:
    """As a document begins in training, or as the folder says: with bos or without."""
    tokenizer = tokenizer_of(opened)
    bos = tokenizer.bos if opened.add_bos else None
    return ([] if bos is None else [bos]) + tokenizer.encode(text)


def tokenizer_of(opened: "OpenRun") -> "Tokenizer":
    if opened.tokenizer is None:
        raise UserError(f"{opened.path}: found no tokenizer, expected tokenizer.json or tokenizer.model; copy it there")
    return opened.tokenizer


def stop_tokens(opened: "OpenRun") -> tuple[int, ...]:
    eos = tokenizer_of(opened).eos
    return () if eos is None else (eos,)


COMMAND = Generate
