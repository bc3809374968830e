import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pretrain.cli import arguments, runs
from pretrain.cli.choice import Choice, end
from pretrain.errors import UserError

HELP = "The model continues the text. /reset forgets it, /quit ends."


@dataclass(frozen=True, kw_only=True)
class Chat(Choice):
    """Continue a text in the terminal, line by line, the text so far as context. /reset forgets it, /quit ends.

    examples:
      pretrain chat smoke
      pretrain chat smoke --stop "class " --repetition-penalty 1.2
      echo "def main(" | pretrain chat smoke --temperature 0 --max-tokens 20
    """

    run: arguments.Run
    max_tokens: int = 64
    """At most, for each line; an end-of-text token ends it sooner."""
    top_p: float | None = 0.95
    """Only the fewest tokens that are together this probable."""
    step: int | None = None
    """Of the checkpoint. Default: the latest."""

    def __call__(self) -> None:
        sampling = self.sampling()
        run = runs.find(self.run)
        import jax

        from pretrain.models.generate.decode import stream
        from pretrain.opened import open_run
        from pretrain.texts import Reader

        opened = open_run(run, step=self.step)
        reader = Reader.of(opened)
        if reader.reads or opened.model.config.decoder is None:
            raise UserError(f"{self.run}: found no model that continues a text, chat needs one; use pretrain generate")
        decode, eos = reader.tokenizer.decode, reader.tokenizer.eos
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
            tokens = stream(
                opened.model,
                context(reader.prompt(text), opened.model.config, self.max_tokens),
                max_tokens=self.max_tokens,
                sampling=sampling,
                key=jax.random.fold_in(key, turn),
                stop_tokens=() if eos is None else (eos,),
                done=(lambda new: end(decode(new), self.stop) is not None) if self.stop else None,
                prefix=reader.prefix,
            )
            text += typed(tokens, reader.tokenizer, self.stop) + "\n"


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


def typed(tokens: Iterator[int], tokenizer, stops: Sequence[str] = ()) -> str:
    """Prints text as its tokens come, never half a character nor a part of a stop; returns all of it."""
    ids, shown, text = [], "", ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids)
        place = end(text, stops)
        if place is not None:
            text = text[:place]
            break
        sure = text[: len(text) - begun(text, stops)]
        if not sure.endswith("\ufffd"):
            print(sure[len(shown) :], end="", flush=True)
            shown = sure
    print(text[len(shown) :], flush=True)
    return text


def begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of a stop."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


COMMAND = Chat
