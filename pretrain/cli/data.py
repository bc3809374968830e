import os
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pretrain import presets
from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Tokenize the corpus of a config into shards. Restartable: the same command again continues.

    examples:
      pretrain data prepare runs.smoke                         into runs/smoke/data, where train looks for it
      pretrain data prepare my_run.py --data.path /data/tokens --workers 16
      pretrain data prepare runs.smoke --data.corpus.source text-files --data.corpus.source.paths docs/
    """

    config: arguments.Config
    run: str | None = None
    """The run whose data/ it becomes when data.path is None. Default: runs/ and the last part of CONFIG."""
    workers: int | None = None
    """Processes that tokenize. Default: one a core."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        config = presets.overrides(presets.load_run(self.config), self.overrides, ("run", "workers", "json"))
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers}: expected 1 or more processes")
        from pretrain.data.corpus import corpus_folder, prepare_if_needed

        folder = corpus_folder(config.data, Path(self.run or runs.default(self.config)) / "data")
        prepare_if_needed(
            config.prepared(),
            folder,
            workers=self.workers,
            progress=lambda p: output.progress(f"{p.done}/{p.units} units, {p.tokens:,} tokens"),
        )
        output.progress("")
        output.show(numbers(folder), self.json)


@dataclass(frozen=True, kw_only=True)
class Show:
    """The numbers of a prepared corpus: documents, tokens, bytes a token.

    examples:
      pretrain data show smoke
      pretrain data show /data/tokens --json
    """

    folder: Positional[str]
    """A prepared folder, or a run, or its name under runs/."""
    json: arguments.Json = False

    def __call__(self) -> None:
        output.show(numbers(_prepared(self.folder)), self.json)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """The batch of a step, decoded, with the file, document and offset that each segment came from.

    examples:
      pretrain data inspect smoke --step 12                    every row of the batch of step 12
      pretrain data inspect smoke --step 12 --row 3 --json
    """

    run: arguments.Run
    step: int
    """As in metrics.jsonl: the first is 1."""
    row: int | None = None
    """Only this row of the global batch, from 0."""
    json: arguments.Json = False

    def __call__(self) -> None:
        config, folder = data_of(self.run)
        rows = config.batch.rows
        if self.step < 1:
            raise UserError(f"step={self.step}: expected 1 or more, as in metrics.jsonl")
        if self.row is not None and not 0 <= self.row < rows:
            raise UserError(f"row={self.row}: expected 0 to {rows - 1}, the rows of this run's batch")
        from pretrain.data.corpus import prepare_if_needed
        from pretrain.data.pipeline import Pipeline

        train, _, tokenizer = prepare_if_needed(config.prepared(), folder, prepare=False)
        from pretrain.objectives.transforms import transform

        rule = transform(config.objective, tokenizer, config.data.sequence_length, config.model)
        pipeline = Pipeline.from_config(train, rule, config.data, rows)
        chosen = range(rows) if self.row is None else [self.row]
        segments = [s for row in chosen for s in _segments(pipeline, tokenizer, self.step - 1, row)]
        output.show({"step": self.step, "segments": segments}, self.json, [_told(s) for s in segments])


def _prepared(name: str) -> Path:
    """The prepared folder of that path or of that run."""
    if (Path(name) / "manifest.json").is_file():
        return Path(name)
    run = Path(runs.find(name))
    return data_of(name)[1] if (run / "run.json").is_file() else run / "data"


def _segments(pipeline, tokenizer, step: int, row: int) -> list[dict]:
    tokens = pipeline.raw(step, slice(row, row + 1)).tokens[0]
    return [
        {
            "row": row,
            "segment": i,
            "file": p.file,
            "file_row": p.row,
            "shard": p.shard,
            "document": p.document,
            "offset": p.offset,
            "tokens": p.length,
            "text": tokenizer.decode(tokens[p.start : p.start + p.length].tolist()),
        }
        for i, p in enumerate(pipeline.sources(step, row), start=1)
    ]


def _told(s: dict) -> str:
    place = f"{s['file']} row {s['file_row']}, document {s['document']} of {s['shard']}, from token {s['offset']}"
    return f"--- row {s['row']} segment {s['segment']}: {s['tokens']} tokens of {place}\n{s['text']}"


def data_of(run: str):
    """(config, folder of its prepared corpus)."""
    from pretrain.data.corpus import corpus_folder

    folder = os.fspath(runs.find(run))
    config = presets.load_run(folder)
    return config, corpus_folder(config.data, os.path.join(folder, "data"))


def numbers(folder: Path) -> dict:
    """What the manifest says, summed. Raises UserError when `folder` is no prepared corpus."""
    from pretrain.data.manifest import SPLITS, read_manifest

    manifest = read_manifest(folder)
    facts = {"folder": str(folder), "tokenizer": manifest.tokenizer[:16], "vocab_size": manifest.vocab_size}
    for split in SPLITS:
        for what in ("documents", "tokens", "text_bytes"):
            facts[f"{split}_{what}"] = manifest.total(split, what)
        facts[f"{split}_shards"] = len(manifest.shards[split])
    tokens = facts["train_tokens"] + facts["validation_tokens"]
    facts["bytes_per_token"] = (facts["train_text_bytes"] + facts["validation_text_bytes"]) / max(tokens, 1)
    return {**facts, "dropped": manifest.dropped}


COMMAND = {"prepare": Prepare, "show": Show, "inspect": Inspect}
