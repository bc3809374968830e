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
    """A sentencepiece .model, a Hugging Face tokenizer.json, a folder that holds one, or a run."""
    text: str | None = None
    """Shown as tokens."""
    json: arguments.Json = False

    def __call__(self) -> None:
        from pretrain.data.tokenizer import load_tokenizer

        path = Path(self.path)
        for run in (path, Path(runs.HOME) / path):
            if (run / "data" / "tokenizer").is_dir():
                path = run / "data" / "tokenizer"
        tokenizer = load_tokenizer(path)
        shown = facts(tokenizer)
        if self.text is not None:
            ids = tokenizer.encode(self.text)
            shown |= {"ids": ids, "pieces": [tokenizer.decode([i]) for i in ids]}
            shown |= {"bytes_per_token": len(self.text.encode()) / max(len(ids), 1)}
        output.show(shown, self.json)


def facts(tokenizer) -> dict:
    specials = {name: getattr(tokenizer, name) for name in ("bos", "eos", "pad", "unk")}
    return {"vocab_size": tokenizer.vocab_size, **specials, "fingerprint": tokenizer.fingerprint}


COMMAND = {"train": Train, "show": Show}
