"""Pieces of HTML. Every text goes through `text`, every piece comes back as markup."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING
from html import escape as text
from pathlib import PurePath
from typing import Any

from pretrain import serial
from pretrain.metrics.goodput import goodput as measured
from pretrain.metrics.progress import count
from pretrain.report.record import Record, number
from pretrain.serial import KIND

SAMPLES = 60
"""Steps whose samples are shown; of more, evenly spread ones and always the last."""


def nothing(sentence: str) -> str:
    return f'<p class="nothing">{text(sentence)}</p>'


def tiles(found: Iterable[tuple[str, str, str]]) -> str:
    return "".join(
        f'<div class="tile"><dt>{text(label)}</dt><dd>{text(value)}<small>{text(note)}</small></dd></div>'
        for label, value, note in found
    )


def pairs(found: Iterable[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in found)


def notices(sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{text(s)}</li>" for s in sentences)
    return f'<ul class="notices">{items}</ul>' if items else ""


def axis_buttons(axes: Mapping[str, Any]) -> str:
    buttons = (
        f'<button type="button" data-axis="{name}" aria-pressed="{"true" if i == 0 else "false"}">{name}</button>'
        for i, name in enumerate(axes)
    )
    return f'<div class="switch" role="group" aria-label="x axis">{"".join(buttons)}</div>'


def charts(found: Iterable[Mapping[str, Any]]) -> str:
    return "".join(
        f'<figure class="card"><figcaption>{text(c["title"])}<small>{text(c["unit"])}</small></figcaption>'
        f'<div class="chart" id="chart-{c["key"]}"></div></figure>'
        for c in found
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], best: int | None = None) -> str:
    """Rows of texts; the row with index `best` stands out."""
    heads = "".join(f"<th>{text(h)}</th>" for h in head)
    body = "".join(
        f"<tr{' class=best' if i == best else ''}>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>"
        for i, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'


def evaluations(record: Record) -> str:
    found = record.evaluations[::-1]
    if not found:
        return nothing("No evaluation yet: the first one comes after `evals.every` steps.")
    columns = (("loss", "Loss", ".4f"), ("perplexity", "Perplexity", ".3f"), ("bits_per_byte", "Bits per byte", ".4f"))
    losses = [(x, i) for i, e in enumerate(found) if (x := number(e.get("loss"))) is not None]
    rows = [
        [
            f"{e['step']:,}",
            *(format(x, form) if (x := number(e.get(key))) is not None else "–" for key, _, form in columns),
            count(x) if (x := number(e.get("tokens"))) is not None else "–",
        ]
        for e in found
    ]
    return table(["Step", *(c[1] for c in columns), "Tokens looked at"], rows, min(losses)[1] if losses else None)


def goodput(record: Record) -> str:
    """Seconds by cause; a log without times says nothing."""
    facts = measured(record.every, record.events)
    if not facts["wall"]:
        return nothing("The log does not say when its steps ended.")
    rows = [[name, f"{seconds:,.1f}", f"{seconds / facts['wall']:.1%}"] for name, seconds in facts["seconds"].items()]
    return table(["", "Seconds", "Share"], rows)


def samples(found: Mapping[int, str]) -> str:
    """The newest open, the others one click away."""
    if not found:
        return nothing("No samples yet: set `evals.prompts` to see the model continue them at every evaluation.")
    steps = sorted(found, reverse=True)
    shown = [steps[i * len(steps) // SAMPLES] for i in range(SAMPLES)] if len(steps) > SAMPLES else steps
    left = len(steps) - len(shown)
    blocks = (
        f"<details{' open' if i == 0 else ''}><summary>Step {step:,}</summary>"
        f"{''.join(map(_sample, _fenced(found[step])))}</details>"
        for i, step in enumerate(shown)
    )
    return "".join(blocks) + (nothing(f"{left} more steps are in the folder samples/.") if left else "")


def _fenced(markdown: str) -> list[str]:
    """The blocks of a file of samples without their fences; a file of another form is one block."""
    heading, *blocks = re.split(r"^```text\n", markdown, flags=re.MULTILINE)
    return [block.rstrip().removesuffix("```").removesuffix("\n") for block in blocks] or [heading.strip()]


def _sample(block: str) -> str:
    """The prompt fainter than what the model wrote, which stands between ⟨ and ⟩."""
    prompt, bracket, written = block.partition("⟨")
    if not bracket:
        return f'<div class="sample">{text(block)}</div>'
    return f'<div class="sample"><span>{text(prompt)}</span>{text(written.rstrip().removesuffix("⟩"))}</div>'


def config(value: Any) -> str:
    return _tree(value) if isinstance(value, dict) else nothing("run.json has no config.")


def _tree(value: Mapping[str, Any]) -> str:
    """Plain values first, then each part of the config as a drawer."""
    plain = [(k, v) for k, v in value.items() if k != KIND and not _is_part(v)]
    parts = [(k, v) for k, v in value.items() if _is_part(v)]
    rows = "".join(f"<div><dt>{text(k)}</dt><dd>{text(_plain(v))}</dd></div>" for k, v in plain)
    drawers = "".join(
        f"<details><summary>{text(k)} <small>{text(_kind(v))}</small></summary>{_tree(_as_object(v))}</details>"
        for k, v in parts
    )
    return (f'<dl class="values">{rows}</dl>' if rows else "") + drawers


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(_is_part(v) for v in value))


def _as_object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {str(i): v for i, v in enumerate(value)}


def _kind(value: Any) -> str:
    return str(value.get(KIND, "")) if isinstance(value, dict) else f"{len(value)} of them" if len(value) > 1 else "one"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value)) or "()"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return repr(value) if isinstance(value, str) and value != value.strip() else str(value)


def changes(facts: Mapping[str, Any]) -> str:
    """What differs from the preset that run.json names, as this version of pretrain has it."""
    name = facts.get("preset")
    theirs = _preset(str(name)) if name else None
    if theirs is None:
        named = f"The run started from {name}, which is no preset" if name else "run.json names no preset"
        return nothing(f"{named}: nothing to compare with.")
    found = serial.changes(theirs, facts.get("config") or {})
    rows = [[field, *("–" if side is MISSING else _plain(side) for side in sides)] for field, sides in found.items()]
    return table(["Field", str(name), "This run"], rows) if rows else nothing(f"Nothing differs from {name}.")


def _preset(name: str) -> Any:
    """Files and runs are not looked into: writing a report runs nobody's code."""
    from pretrain import presets

    return presets.load(name) if name in presets.names() else None


def command(facts: Mapping[str, Any]) -> str:
    argv = facts.get("command")
    if not isinstance(argv, list) or not argv:
        return nothing("run.json has no command line.")
    first = PurePath(str(argv[0]))
    words = ["python", "-m", "pretrain"] if first.suffix == ".py" else [first.name]
    commit = (facts.get("code") or {}).get("commit")
    lines = [f"git checkout {commit}"] if commit else []
    return text("\n".join([*lines, shlex.join([*words, *map(str, argv[1:])])]))
