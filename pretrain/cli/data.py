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
        from pretrain.data.corpus import corpus_folder, open_corpus

        root = Path(self.run or runs.default(self.config)) / "data"
        folder = corpus_folder(config.data, root)
        open_corpus(
            config.prepared(),
            root,
            workers=self.workers,
            progress=lambda p: output.progress(f"{p.job}: {p.done}/{p.units} units, {p.tokens:,} tokens"),
        )
        output.progress("")
        _show_numbers(folder, self.json)


@dataclass(frozen=True, kw_only=True)
class Show:
    """The numbers of a prepared corpus: documents, tokens, bytes a token, and what each step kept and dropped.

    examples:
      pretrain data show smoke
      pretrain data show /data/tokens --json
    """

    folder: Positional[str]
    """A prepared folder, or a run, or its name under runs/."""
    json: arguments.Json = False

    def __call__(self) -> None:
        _show_numbers(_prepared(self.folder), self.json)


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """The batch of a step, decoded, with the file, document and offset of each segment; or the steps of a passage.

    examples:
      pretrain data inspect smoke --step 12                    every row of the batch of step 12
      pretrain data inspect smoke --step 12 --row 3 --json
      pretrain data inspect smoke --find "def main():"         where it stands, and the steps that have read it
      pretrain data inspect smoke --find "def main():" --until-step 5000
    """

    run: arguments.Run
    step: int | None = None
    """As in metrics.jsonl: the first is 1."""
    row: int | None = None
    """Only this row of the global batch, from 0."""
    find: str | None = None
    """A passage of one document."""
    until_step: int | None = None
    """Steps to name for --find, trained or not. Default: the last of metrics.jsonl."""
    limit: int = 20
    """Passages to name for --find."""
    json: arguments.Json = False

    def __call__(self) -> None:
        if (self.step is None) == (self.find is None):
            raise UserError("found both or none of --step and --find, expected one; name a step or a passage")
        if self.step is not None:
            segments = inspect_step(self.run, self.step, self.row)
            output.show({"step": self.step, "segments": segments}, self.json, [_told(s) for s in segments])
            return
        if self.row is not None or self.limit < 1 or (self.until_step is not None and self.until_step < 1):
            raise UserError(
                f"row={self.row} limit={self.limit} until_step={self.until_step}: expected no row, and 1 or more of "
                "the others with --find; correct them"
            )
        from pretrain.cli.ledger import find, told

        facts = find(self.run, self.find or "", self.until_step, self.limit)
        output.show(facts, self.json, told(facts))


def inspect_step(run: str, step: int, row: int | None) -> list[dict]:
    """The segments of a batch, or of one row of it."""
    rows = data_of(run)[0].batch.rows
    if step < 1:
        raise UserError(f"step={step}: expected 1 or more, as in metrics.jsonl")
    if row is not None and not 0 <= row < rows:
        raise UserError(f"row={row}: expected 0 to {rows - 1}, the rows of this run's batch")
    pipeline, tokenizer = pipeline_of(run)
    chosen = slice(0, rows) if row is None else slice(row, row + 1)
    tokens = pipeline.raw(step - 1, chosen).tokens
    numbers = range(rows)[chosen]
    return [s for r, ids in zip(numbers, tokens) for s in _segments(pipeline, tokenizer, step - 1, r, ids)]


def pipeline_of(run: str):
    """(pipeline, tokenizer) of a run whose corpus is prepared or streamed."""
    from pretrain.data import corpus
    from pretrain.objectives.transforms import rows_of

    folder = os.fspath(runs.find(run))
    config = presets.load_run(folder)
    train, _, tokenizer = corpus.open_corpus(config.prepared(), os.path.join(folder, "data"), prepare=False)
    rule = rows_of(config, tokenizer)
    return corpus.pipeline_of(train, rule, config.data, config.batch.rows), tokenizer


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Prove from metrics.jsonl that a run saw every sample once in its turn; exit code 3 where it did not.

    examples:
      pretrain data audit smoke
      pretrain data audit smoke --steps 1000:2000              only batches of these steps are built anew
      pretrain data audit smoke --sample 100 --json            of 100 steps, evenly spread
    """

    run: arguments.Run
    steps: str | None = None
    """A:B, both included. Default: all that were logged."""
    sample: int | None = None
    """Build so many batches anew at most."""
    json: arguments.Json = False

    def __call__(self) -> None:
        from pretrain.cli.ledger import audit
        from pretrain.errors import CheckFailed

        facts, problems = audit(self.run, self.steps, self.sample)
        output.show(facts, self.json)
        if problems:
            raise CheckFailed(*problems)


def _prepared(name: str) -> Path:
    """The prepared folder of that path or of that run."""
    if (Path(name) / "manifest.json").is_file():
        return Path(name)
    run = Path(runs.find(name))
    return data_of(name)[1] if (run / "run.json").is_file() else run / "data"


def _segments(pipeline, tokenizer, step: int, row: int, tokens) -> list[dict]:
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
    return {**facts, "dropped": manifest.dropped, "funnel": manifest.funnel}


def _show_numbers(folder: Path, as_json: bool) -> None:
    from pretrain.data.recipe.funnel import table

    facts = numbers(folder)
    told = {name: value for name, value in facts.items() if name not in ("dropped", "funnel")}
    output.show(facts, as_json, [*output.rows(told), "", *table(facts["funnel"])])


COMMAND = {"prepare": Prepare, "show": Show, "inspect": Inspect, "audit": Audit}
