import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pretrain import presets
from pretrain.cli import arguments, output, runs
from pretrain.data.config import TrainSentencePiece
from pretrain.errors import UserError, check


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the tokenizer of a config on its corpus, into a folder of its own.

    examples:
      pretrain tokenizer train runs.smoke --to tokenizers/smoke
      pretrain tokenizer train runs.smoke --to t --data.corpus.tokenizer.kind unigram
      pretrain train runs.smoke --data.corpus.tokenizer tokenizer-file --data.corpus.tokenizer.path t
    """

    config: arguments.Config
    to: str
    """A new folder."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        config = presets.overrides(presets.load_run(self.config), self.overrides, ("to", "json"))
        corpus, wanted = config.data.corpus, config.prepared().corpus.tokenizer
        if not isinstance(wanted, TrainSentencePiece):
            raise UserError(
                "data.corpus.tokenizer is a finished TokenizerFile, expected one to train; "
                "add --data.corpus.tokenizer train-sentence-piece"
            )
        check(corpus, "data.corpus")
        if corpus.steps:
            message = f"found {len(corpus.steps)} data.corpus.steps, expected none: prepare cleans and trains in one go"
            raise UserError(f"{message}; run pretrain data prepare and take tokenizer/ of its folder")
        folder = runs.must_be_new(self.to)
        from pretrain.data.sources import list_parts
        from pretrain.data.tokenizer import load_tokenizer
        from pretrain.data.tokenizer_sentencepiece import sample, train_sentencepiece
        from pretrain.data.write import divided, training_texts

        files = list_parts(corpus.source)
        chosen = sample(training_texts(corpus, divided(corpus, files)), wanted.sample_bytes)
        if not chosen:
            raise UserError(f"found no text for training in {len(files)} source files, expected some; name other files")
        partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
        partial.mkdir(parents=True)
        try:
            train_sentencepiece(chosen, wanted, partial)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        output.show({"folder": self.to, **facts(load_tokenizer(folder))}, self.json)


@dataclass(frozen=True, kw_only=True)
class Show:
    """What a tokenizer is, and what it makes of a text.

    examples:
      pretrain tokenizer show runs/smoke/data/tokenizer
      pretrain tokenizer show smoke --text "def main():"
      pretrain tokenizer show llama/tokenizer.json --text "naïve" --json
    """

    path: Positional[str]
    """A sentencepiece .model, a Hugging Face tokenizer.json, a folder that holds one, a prepared folder, or a run."""
    text: str | None = None
    """Shown as tokens."""
    json: arguments.Json = False

    def __call__(self) -> None:
        from pretrain.data.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(_place(self.path))
        shown = facts(tokenizer)
        if self.text is not None:
            ids = tokenizer.encode(self.text)
            shown |= {"ids": ids, "pieces": [tokenizer.decode([i]) for i in ids]}
            shown |= {"bytes_per_token": len(self.text.encode()) / max(len(ids), 1)}
        output.show(shown, self.json)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Tokenizers side by side on some text: tokens, their kinds, speed.

    examples:
      pretrain tokenizer report --tokenizers smoke llama/tokenizer.json --files english.jsonl german.jsonl code/
    """

    tokenizers: tuple[str, ...]
    """Each as for show."""
    files: tuple[str, ...]
    """Text files, .jsonl with a field text, .parquet with a column text, or folders of text files."""
    max_bytes: int = 10_000_000
    """Read of each of the files."""
    json: arguments.Json = False

    def __call__(self) -> None:
        from pretrain.data.tokenizer import load_tokenizer
        from pretrain.data.tokenizer_report import measure, read_texts

        if not self.tokenizers or not self.files or self.max_bytes < 1:
            raise UserError(
                f"found {len(self.tokenizers)} tokenizers, {len(self.files)} files and max_bytes={self.max_bytes}, "
                "expected 1 or more of each; name them"
            )
        loaded = {name: load_tokenizer(_place(name)) for name in self.tokenizers}
        rows = []
        for file in self.files:
            if not any(texts := read_texts(file, self.max_bytes)):
                raise UserError(f"{file}: found no text, expected some; name another file")
            rows += [{"file": file, "tokenizer": n, **measure(t, texts)} for n, t in loaded.items()]
        output.show({"report": rows}, self.json, _table(rows))


def _table(rows: list[dict]) -> list[str]:
    shown = [list(rows[0]), *([output.number(v) for v in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*shown)]
    texts = ("file", "tokenizer")
    sides = ["<" if name in texts else ">" for name in rows[0]]
    return ["  ".join(f"{cell:{side}{n}}" for cell, side, n in zip(row, sides, widths)).rstrip() for row in shown]


def _place(name: str) -> Path:
    """The tokenizer of that path, of that prepared folder or of that run."""
    path = Path(name)
    places = [folder / "tokenizer" for folder in (path, path / "data", Path(runs.HOME) / path / "data")]
    return next((place for place in places if place.is_dir()), path)


def facts(tokenizer) -> dict:
    specials = {name: getattr(tokenizer, name) for name in ("bos", "eos", "pad", "unk")}
    return {"vocab_size": tokenizer.vocab_size, **specials, "fingerprint": tokenizer.fingerprint}


COMMAND = {"train": Train, "show": Show, "report": Report}
