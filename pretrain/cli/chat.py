import sys
from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.cli import arguments, runs
from pretrain.cli.generate import prompt_ids, sampling_of, stop_tokens, tokenizer_of

HELP = "The model continues the text. /reset forgets it, /quit ends."


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Continue a text in the terminal, line by line, the text so far as context. /reset forgets it, /quit ends.

    examples:
      pretrain chat smoke
      echo "def main(" | pretrain chat smoke --temperature 0 --max-tokens 20
    """

    run: arguments.Run
    max_tokens: int = 64
    """At most, for each line; an end-of-text token ends it sooner."""
    temperature: float = 0.8
    """0 takes the most probable token."""
    top_k: int | None = None
    """Only the k most probable tokens."""
    top_p: float | None = 0.95
    """Only the fewest tokens that are together this probable."""
    min_p: float | None = None
    """Only tokens at least this times as probable as the most probable one."""
    seed: int = 0
    step: int | None = None
    """Of the checkpoint. Default: the latest."""

    def __call__(self) -> None:
        sampling = sampling_of(self)
        run = runs.find(self.run)
        import jax

        from pretrain.models.generate.decode import stream
        from pretrain.opened import open_run

        opened = open_run(run, step=self.step)
        key = jax.random.key(self.seed)
        text = ""
        if sys.stdin.isatty():
            print(HELP)
        for turn, line in enumerate(lines()):
            if line == "/quit":
                return
            if line == "/reset":
                text = ""
                continue
            text += line
            ids = context(prompt_ids(opened, text), opened.model.config, self.max_tokens)
            tokens = stream(
                opened.model,
                ids,
                max_tokens=self.max_tokens,
                sampling=sampling,
                key=jax.random.fold_in(key, turn),
                stop_tokens=stop_tokens(opened),
            )
            text += typed(tokens, tokenizer_of(opened)) + "\n"


def lines() -> Iterator[str]:
    """Lines of a terminal or a pipe until its end; empty ones say nothing."""
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            line = input(prompt)
        except EOFError:
            return
        if line.strip():
            yield line.strip() if line.strip() in ("/quit", "/reset") else line


def context(ids: list[int], config, max_tokens: int) -> list[int]:
    """The last tokens that leave room for new ones, where positions are a table."""
    room = getattr(config.stack.positions, "length", None)
    return ids if room is None else ids[-max(1, room - max_tokens) :]


def typed(tokens: Iterator[int], tokenizer) -> str:
    """Prints text as its tokens come, never half a character; returns all of it."""
    ids, shown = [], ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        if not text.endswith("�"):
            print(text[len(shown) :], end="", flush=True)
            shown = text
    text = tokenizer.decode(ids)
    print(text[len(shown) :], flush=True)
    return text


COMMAND = Chat
