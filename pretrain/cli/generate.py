from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pretrain.cli import arguments, output, runs
from pretrain.cli.choice import Choice, cut, end
from pretrain.errors import UserError
from pretrain.models.generate.config import BeamSearch, Sampling

if TYPE_CHECKING:
    from pretrain.opened import OpenRun
    from pretrain.texts import Reader


@dataclass(frozen=True, kw_only=True)
class Generate(Choice):
    """Continue a prompt; answer a source text; fill masks.

    examples:
      pretrain generate smoke --prompt "def main(" --max-tokens 40
      pretrain generate smoke --prompt "import " --temperature 0 --json
      pretrain generate smoke --prompt "class " --stop "class " --repetition-penalty 1.2
      pretrain generate exported/ --prompt "Once" --temperature 0.8 --top-p 0.95 --seed 1
      pretrain generate big --prompt "def " --draft smoke --drafts 5
      pretrain generate t5/ --source "The <extra_id_0> walks in the park." --temperature 0
      pretrain generate marian/ --source "A sentence to translate." --beams 4 --length-penalty 1.2
      pretrain generate bert/ --prompt "The capital of France is [MASK]." --top-k 3
    """

    run: arguments.Run
    prompt: str | None = None
    """The text to continue; of an encoder the text with masks; beside a source, how the answer begins."""
    source: str | None = None
    """The text to answer, where the model reads one and writes another. It may spell special tokens."""
    temperature: float | None = None
    """0 takes the most probable token. Default: 0.8, with beams 0."""
    first_token: str | None = None
    """What is written first, by its name or number (mBART: a language)."""
    beams: int | None = None
    """Beam search: so many continuations side by side, the most probable ones go on."""
    length_penalty: float = 1.0
    """Of beams, whose score is sum(logprobs) / tokens ** length_penalty."""
    until: Literal["enough", "likely", "sure"] = "likely"
    """When beams end: with enough of them finished, and no other likely, or sure, to become better."""
    draft: str | None = None
    """A smaller run with the same tokenizer that proposes tokens: the same distribution, sooner."""
    drafts: int = 4
    """Tokens it proposes at a time."""
    step: int | None = None
    """Of the checkpoint. Default: the latest."""
    json: arguments.Json = False

    def __call__(self) -> None:
        if self.prompt is None and self.source is None:
            raise UserError("prompt: missing, pretrain generate needs it; see pretrain generate --help")
        drawn = 0.8 if self.beams is None else 0.0
        sampling = replace(self, temperature=drawn if self.temperature is None else self.temperature).sampling()
        self._check(sampling)
        run = runs.find(self.run)
        from pretrain.opened import open_run
        from pretrain.texts import Reader

        opened = open_run(run, step=self.step)
        reader = Reader.of(opened)
        if opened.model.config.decoder is None:
            return self._fill(opened, reader)
        if self.first_token is not None:
            sampling = replace(sampling, first_token=reader.special(self.first_token, "first_token"))
        facts = self._write(opened, reader, sampling)
        output.show(facts, self.json, [(self.prompt or "") + facts["text"]])

    @property
    def _search(self) -> BeamSearch | None:
        if self.beams is None:
            return None
        return BeamSearch(beams=self.beams, length_penalty=self.length_penalty, until=self.until)

    def _check(self, sampling: Sampling) -> None:
        problems = []
        if self._search is not None:
            problems += [message for holds, message in self._search.checks() if not holds]
            if not sampling.greedy:
                problems.append(f"temperature={self.temperature}: expected 0, beams draw nothing; leave it out")
            if self.draft is not None:
                problems.append("draft: found beams too, expected one of them; leave the other out")
        if not 1 <= self.drafts < 32:
            problems.append(f"drafts={self.drafts}: expected 1 to 31 tokens at a time; 4 is usual")
        if problems:
            raise UserError(*problems)

    def _write(self, opened: "OpenRun", reader: "Reader", sampling: Sampling) -> dict[str, Any]:
        prompt, source = asked(reader, self.prompt, self.source, self.run)
        eos = reader.tokenizer.eos
        options: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "sampling": sampling,
            "stop_tokens": () if eos is None else (eos,),
            "sources": None if source is None else [source],
            "prefix": reader.prefix,
        }
        write = self._searched if self.beams is not None else self._speculated if self.draft else self._drawn
        return write(opened.model, prompt, options, reader.tokenizer.decode)

    def _drawn(self, model, prompt: list[int], options: dict[str, Any], decode) -> dict[str, Any]:
        import jax

        from pretrain.models.generate.decode import generate

        done = (lambda tokens: end(decode(tokens), self.stop) is not None) if self.stop else None
        out = generate(model, [prompt], key=jax.random.key(self.seed), done=done, **options)
        return self._facts(out.tokens[0], out.logprobs[0], decode)

    def _speculated(self, model, prompt: list[int], options: dict[str, Any], decode) -> dict[str, Any]:
        import jax

        from pretrain.models.generate.speculative import speculate
        from pretrain.opened import open_run

        draft = open_run(runs.find(self.draft or "")).model
        out = speculate(model, draft, [prompt], drafts=self.drafts, key=jax.random.key(self.seed), **options)
        return self._facts(out.tokens[0], out.logprobs[0], decode) | {"acceptance": out.acceptance}

    def _searched(self, model, prompt: list[int], options: dict[str, Any], decode) -> dict[str, Any]:
        from pretrain.models.generate.beam import beam_search

        assert self._search is not None
        out = beam_search(model, [prompt], self._search, **options)
        rows = zip(out.tokens[0], out.logprobs[0], out.scores[0])
        best, *others = [self._facts(tokens, p, decode) | {"score": score} for tokens, p, score in rows]
        return best | {"others": others}

    def _facts(self, tokens: list[int], logprobs: list[float], decode) -> dict[str, Any]:
        text, n = cut(tokens, self.stop, decode)
        return {"text": text, "tokens": tokens[:n], "logprobs": logprobs[:n]}

    def _fill(self, opened: "OpenRun", reader: "Reader") -> None:
        from pretrain.models.generate.fill import fill

        if self.prompt is None or self.source is not None:
            raise UserError(f"source: {self.run} is an encoder, expected a text with masks; give it as --prompt")
        ids, mask = reader.masked(self.prompt)
        (filled,) = fill(opened.model, [ids], mask, top_k=self.top_k or 5)
        decode, best = reader.tokenizer.decode, list(ids)
        for one in filled:
            best[one.place] = one.tokens[0]
        masks = [
            {
                "place": one.place,
                "tokens": one.tokens,
                "texts": [decode([t]) for t in one.tokens],
                "logprobs": one.logprobs,
            }
            for one in filled
        ]
        lines = [decode(best)]
        lines += [candidates(n, facts["texts"], facts["logprobs"]) for n, facts in enumerate(masks, 1)]
        output.show({"text": lines[0], "masks": masks}, self.json, lines)


def candidates(number: int, texts: list[str], logprobs: list[float]) -> str:
    from math import exp

    return f"mask {number}: " + "  ".join(f"{text.strip()} {exp(p):.3f}" for text, p in zip(texts, logprobs))


def asked(reader: "Reader", prompt: str | None, source: str | None, run: str) -> tuple[list[int], list[int] | None]:
    """(ids of the prompt, ids for the encoder). Raises UserError for texts that the model has no use for."""
    if source is not None and not reader.reads:
        raise UserError(f"source: {run} reads no text beside the one it writes, expected a prompt; give it as --prompt")
    if source is None and reader.reads:
        raise UserError(f"source: missing, {run} reads one text and writes another; give what it reads as --source")
    if source is None:
        return reader.prompt(prompt or ""), None
    if reader.model.encoder is not None:
        return reader.opening(prompt or ""), reader.source(source)
    if prompt is not None:
        raise UserError(f"prompt: {run} writes what follows a source, expected the source alone; leave --prompt out")
    return reader.source(source), None


COMMAND = Generate
