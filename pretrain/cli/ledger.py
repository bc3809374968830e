"""What the ledger of a run says: where a passage was read, and whether every sample was read once."""

import itertools
from dataclasses import asdict, replace

from pretrain.cli import data, runs
from pretrain.data import audit as proofs
from pretrain.data.find import passages, sightings
from pretrain.data.pipeline import Pipeline
from pretrain.data.streamed import Streamed
from pretrain.errors import UserError
from pretrain.metrics.sinks import read_lines


def find(run: str, text: str, until_step: int | None, limit: int) -> dict:
    """The first `limit` passages with their places, and every step up to `until_step` that reads one."""
    until = until_step or _log(run).last
    pipeline, tokenizer = data.pipeline_of(run)
    if isinstance(pipeline, Streamed):
        raise UserError(
            f"{runs.find(run)}: found a run that streams its text, expected a prepared corpus to search; search the "
            "files of data.corpus.source, or set data.streaming=False in a run of its own"
        )
    found = list(itertools.islice(passages(pipeline.split, tokenizer, text), limit + 1))
    return {
        "text": text,
        "until_step": until,
        "more": len(found) > limit,
        "passages": [_passage(pipeline, p, until) for p in found[:limit]],
    }


def _passage(pipeline: Pipeline, passage, until: int) -> dict:
    place = pipeline.split.pieces(passage.position, passage.length)[0]
    seen = [asdict(s) for s in sightings(pipeline, passage, until)]
    where = {"file": place.file, "file_row": place.row, "shard": place.shard, "document": place.document}
    return {**where, "offset": place.offset, "tokens": passage.length, "seen": seen}


def told(facts: dict) -> list[str]:
    lines = []
    for p in facts["passages"]:
        place = f"{p['file']} row {p['file_row']}, document {p['document']} of {p['shard']}, from token {p['offset']}"
        seen = [_seen(s, p["tokens"]) for s in p["seen"]]
        lines += [f"--- {p['tokens']} tokens of {place}", *(seen or [f"not read up to step {facts['until_step']}"])]
    if not lines:
        return ["found in no document of the train split"]
    return [*lines, "--- and more: raise --limit"] if facts["more"] else lines


def _seen(s: dict, tokens: int) -> str:
    part = "" if s["tokens"] == tokens else f", {s['tokens']} of the {tokens} tokens"
    return f"step {s['step']} row {s['row']}{part}{', as a partner' if s['beside'] else ''}"


def audit(run: str, steps: str | None, sample: int | None) -> tuple[dict, list[str]]:
    """(numbers, the first problem of each kind)."""
    log = _log(run)
    if not log.lines:
        raise UserError(f"found no step in {runs.find(run)}/metrics.jsonl, expected some; train the run first")
    first, last = _range(steps, log.last)
    if sample is not None and sample < 1:
        raise UserError(f"sample={sample}: expected 1 or more steps to build anew")
    pipeline, _ = data.pipeline_of(run)
    if isinstance(pipeline, Streamed) and sample is None and steps is None:
        pipeline = replace(pipeline, journaled=False)  # all is read again from the start: the journal proves nothing
    inside = [line for line in log.lines if first <= line["step"] <= last]
    named = sorted({line["step"] for line in inside})
    if sample is not None and sample < len(named):
        named = [named[i * len(named) // sample] for i in range(sample)]
    chosen = [line for line in inside if line["step"] in set(named)]
    problems = [
        *(p for p in proofs.log_problems(log) if first <= p.step <= last),
        *proofs.batch_problems(pipeline, chosen),
        *([] if isinstance(pipeline, Streamed) else proofs.order_problems(pipeline, last)),
    ]
    kinds = {kind: [p for p in problems if p.kind == kind] for kind in ("lost", "repeated", "different")}
    facts = {
        "steps": last,
        "steps_checked": len(named),
        "steps_trained_again": len(inside) - len({line["step"] for line in inside}),
        "samples": last * pipeline.batch,
        **(_read_over(pipeline, last) if isinstance(pipeline, Pipeline) else {}),
        **{kind: len(found) for kind, found in kinds.items()},
    }
    return facts, [_first(found) for found in kinds.values() if found]


def _read_over(pipeline: Pipeline, steps: int) -> dict:
    rows = pipeline.plan.rows
    return {"rows_of_an_epoch": rows, "epochs": steps * pipeline.batch / rows}


def _first(found: list[proofs.Problem]) -> str:
    more = f"; and {len(found) - 1} more" if found[1:] else ""
    return f"{found[0].kind}: {found[0].what}; compare data.path with the run's first session, see doctor{more}"


def _range(steps: str | None, last: int) -> tuple[int, int]:
    if steps is None:
        return 1, last
    a, colon, b = steps.partition(":")
    if not (colon and a.isdecimal() and b.isdecimal() and 1 <= int(a) <= int(b) <= last):
        raise UserError(f"steps={steps}: expected A:B from 1 to {last}, the last logged step; correct it")
    return int(a), int(b)


def _log(run: str) -> proofs.Log:
    folder = runs.find(run)
    lines = [x for x in read_lines(folder / "metrics.jsonl") if isinstance(x.get("step"), int)]
    events = [e for e in read_lines(folder / "events.jsonl") if e.get("kind") in ("start", "resume", "rewind")]
    known = [e for e in events if isinstance(e.get("step"), int) and isinstance(e.get("log_every"), int)]
    if not known:
        raise UserError(f"found no start in {folder}/events.jsonl, expected that of the run; restore the file")
    return proofs.Log(lines, [proofs.Session(e["step"], e["log_every"]) for e in known])
