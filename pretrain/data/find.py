"""Where a passage of text stands in a prepared corpus, and at which steps a run reads it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pretrain.data.draws import Draws, row_keys
from pretrain.data.pipeline import Pipeline
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.windows import Split
from pretrain.errors import UserError

BLOCK = 1 << 16
"""Samples looked through at a time for partners, which are drawn and have no inverse."""


@dataclass(frozen=True)
class Passage:
    """Tokens of one document that hold the text; the first and the last may hold more."""

    position: int
    """In the split's stream."""
    length: int


@dataclass(frozen=True)
class Sighting:
    """A row of a run that holds some of a passage."""

    step: int
    """As in metrics.jsonl, from 1."""
    row: int
    tokens: int
    """Of the passage in this row."""
    beside: bool = False
    """The row was drawn as another's partner, which may use a part of it."""


def passages(split: Split, tokenizer: Tokenizer, text: str) -> Iterator[Passage]:
    """Each place of `text` in a document, in order. Reads the whole split, a record at a time.

    Searched are the bytes that tokens stand for, because a passage has other tokens alone than in its document; also
    those that the tokenizer makes of `text`, where it does not keep text as it is (lower case).
    """
    needles = {text.encode(), tokenizer.bytes_of(tokenizer.encode(text))} - {b""}
    if not needles:
        raise UserError("found an empty text, expected one to search for; name some words")
    table = [tokenizer.bytes_of([i]) for i in range(split.vocab_size)]
    sizes, reach = np.array([len(b) for b in table]), max(map(len, needles)) - 1
    kept = np.zeros(0, np.int64)  # the tokens before this record in which a match may begin
    for begin, record in split.records():
        tokens = np.concatenate([kept, record.tokens[:-1]])
        first, done = begin - len(kept), int(sizes[kept].sum())
        starts = record.boundaries.astype(np.int64) + len(kept)
        ends = np.cumsum(sizes[tokens])
        data = b"".join([table[i] for i in tokens.tolist()])
        found = set()
        for a, b in _places(data, needles):
            i, j = np.searchsorted(ends, [a, b - 1], "right").tolist()
            if b > done and np.searchsorted(starts, i, "right") == np.searchsorted(starts, j, "right"):
                found.add(Passage(first + i, j - i + 1))
        yield from sorted(found, key=lambda p: (p.position, p.length))
        tail = int(np.searchsorted(ends, ends[-1] - reach, "right")) if len(ends) else 0
        kept = tokens[max(tail, int(starts[-1]) if len(starts) else 0) :]


def _places(data: bytes, needles: set[bytes]) -> Iterator[tuple[int, int]]:
    for needle in needles:
        at = data.find(needle)
        while at >= 0:
            yield at, at + len(needle)
            at = data.find(needle, at + 1)


def sightings(pipeline: Pipeline, passage: Passage, until_step: int) -> list[Sighting]:
    """Every row of steps 1 to `until_step` that holds some of the passage, by arithmetic."""
    until, plan = until_step * pipeline.batch, pipeline.plan
    rows = plan.rows_of(passage.position, passage.length)
    samples = pipeline.order.samples_of(rows, until)
    shown = pipeline.order.rows(samples)
    out = [_sighting(pipeline, passage, int(g), int(row), False) for g, row in zip(samples, shown)]
    for sample, row in _beside(pipeline, rows, until):
        out.append(_sighting(pipeline, passage, sample, row, True))
    return sorted(out, key=lambda s: (s.step, s.row, s.beside))


def _sighting(pipeline: Pipeline, passage: Passage, sample: int, row: int, beside: bool) -> Sighting:
    end = passage.position + passage.length
    runs = pipeline.plan.runs(row)
    held = sum(max(0, min(end, begin + n) - max(passage.position, begin)) for begin, n in runs)
    step, place = divmod(sample, pipeline.batch)
    return Sighting(step + 1, place, held, beside)


def _beside(pipeline: Pipeline, rows: np.ndarray, until: int) -> Iterator[tuple[int, int]]:
    """(sample, partner) of samples whose partner is one of the rows: looks at every sample."""
    for begin in range(0, until, BLOCK):
        samples = np.arange(begin, min(begin + BLOCK, until))
        draws = Draws(row_keys(pipeline.seed, samples, "train"))
        partners = pipeline.plan.partners(pipeline.order.rows(samples), draws)
        if partners is None:
            return
        hit = np.isin(partners, rows)
        yield from zip(samples[hit].tolist(), partners[hit].tolist())
