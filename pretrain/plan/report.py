"""A plan for people: a few lines, or a page to keep."""

from typing import Any

GB = 2**30


def lines(name: str, plan: dict[str, Any]) -> list[str]:
    memory = plan["memory"]
    how = "by arithmetic, nothing was compiled"
    if plan["basis"] == "compiled":
        how = "compiled before" if plan["cached"] else f"compiled in {plan['compile_seconds']:.0f} s"
    chips = (
        f"{plan['chips']} chips"
        if plan["chips"] == plan["devices"]
        else f"{plan['chips']} chips, {plan['devices']} devices"
    )
    head = f"{name} on {plan['on']} ({chips}, {gib(memory['limit_bytes'])} GiB a device)   {how}"
    notes = [f" {'note':<13}{note}" for note in plan["notes"]]
    return [head, *_fits(memory, plan["fits"]), *_speed(plan), *notes, *_network(plan), *_help(plan)]


def gib(value: float) -> str:
    return f"{value / GB:.1f}"


def _fits(memory: dict[str, Any], fits: bool) -> list[str]:
    peak, limit = memory["peak_bytes"], memory["limit_bytes"]
    room = f"{gib(abs(limit - peak))} {'free' if fits else 'too many'}"
    causes = {k.removesuffix("_bytes"): v for k, v in memory.items() if k not in ("peak_bytes", "limit_bytes")}
    causes.pop("arguments", None)
    parts = "  ".join(f"{name} {gib(v)}" for name, v in causes.items() if v >= 0.05 * GB)
    word = "fits" if fits else "does not fit"
    return [f" {word:<13}{gib(peak)} of {gib(limit)} GiB, {room}", f" {'':<13}{parts or 'less than 0.1 GiB of each'}"]


def _speed(plan: dict[str, Any]) -> list[str]:
    low, likely, high = plan["step_seconds"]
    if not likely:
        return []
    limits = ", ".join(f"{k} {v:.0%}" for k, v in plan["limited_by"].items())
    days, hours = plan["days"], plan["chip_hours"]
    budget = plan["steps"] * plan["tokens_per_step"]
    return [
        f" {'speed':<13}{duration(likely)} a step ({duration(low)} to {duration(high)})   "
        f"{count(plan['tokens_per_second'])} tokens/s   MFU {plan['mfu']:.0%}   limited by: {limits}",
        *([f" {'':<13}a roofline of each operation, as this compiler counts no cycles"] if plan["walked"] else ()),
        f" {'run':<13}{plan['steps']:,} steps, {count(budget)} tokens: {days:.3g} days, {hours:,.0f} chip-hours",
    ]


def duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.2f} ms"


def count(number: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def _network(plan: dict[str, Any]) -> list[str]:
    out = []
    for c in sorted(plan["collectives"], key=lambda c: -c["bytes"])[:6]:
        over = c["axis"] or f"groups of {c['devices']}"
        hidden = "beside computation" if plan["walked"] else "hidden behind computation"
        waits = (f"between {c['nodes']} nodes, " if c["nodes"] > 1 else "") + (
            hidden if c["asynchronous"] else "waited for"
        )
        head = "" if out else "network"
        out.append(f" {head:<13}{c['kind']} x {c['count']:,.0f} over {over}: {c['bytes'] / 1e9:.3g} GB, {waits}")
    if plan["loops_without_turns"]:
        out.append(f" {'':<13}{plan['loops_without_turns']} loops say no number of turns and count once")
    if plan["loops_not_entered"]:
        seldom = f"{plan['loops_not_entered']} loops for more count as nothing"
        out.append(f" {'':<13}experts are taken to have an even load: {seldom}")
    return out


def _help(plan: dict[str, Any]) -> list[str]:
    changes = plan["changes"]
    if not changes:
        return [] if plan["fits"] else [f" {'helps':<13}nothing that was tried; a larger slice or fewer rows"]
    now, peak = plan["step_seconds"][1], plan["memory"]["peak_bytes"]
    out = []
    for i, change in enumerate(changes):
        time = f"{change['step_seconds'] - now:+.2f} s, " if now else ""
        told = f"{time}{(change['peak_bytes'] - peak) / GB:+.1f} GiB (by arithmetic)"
        if change["basis"] == "compiled":
            told = f"fits, {gib(change['peak_bytes'])} GiB, {duration(change['step_seconds'])} a step (compiled)"
        out.append(f" {'helps' if i == 0 else '':<13}{change['options']}: {told}")
    return out


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Of a search; * marks what nothing beats in both time and memory."""
    names = ("", "mesh", "remat", "accumulate", "fits", "GiB", "s a step", "MFU")
    cells: list[tuple[str, ...]] = [names]
    for r in rows:
        time = f"{r['step_seconds']:.3f}" if r["step_seconds"] else "-"
        mfu = f"{r['mfu']:.0%}" if r["mfu"] else "-"
        fits, mark = "yes" if r["fits"] else "no", "*" if r["best"] else ""
        cells.append((mark, r["mesh"], r["remat"], str(r["accumulate"]), fits, gib(r["peak_bytes"]), time, mfu))
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in cells]


def page(name: str, command: str, plan: dict[str, Any], versions: str) -> str:
    """Markdown."""
    body = "\n".join(lines(name, {**plan, "cached": False} if plan["compile_seconds"] else plan))
    return (
        f"# {name} on {plan['on']}\n\n```console\n$ {command}\n```\n\n```text\n{body}\n```\n\nMade with {versions}.\n"
    )
