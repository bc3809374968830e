"""What became of every document, as a table."""

from pretrain.data.recipe.shards import Funnel, drop, row_of


def whole(cleaned: Funnel | None, dropped: dict[str, int], documents: int, text_bytes: int) -> Funnel:
    """The rows of a corpus: reading, the steps of its recipe, and tokenizing, which left `documents` documents.

    `dropped`: what the units counted, when they were tokenized. Without a recipe reading is among it.
    """
    lost = dropped.get("no tokens", 0)
    rows = list(cleaned) if cleaned is not None else []
    if cleaned is None:
        row = row_of("read")
        for reason, amount in sorted(dropped.items()):
            if reason != "no tokens":
                drop(row, reason, 0, amount)
        row["documents"] = documents + lost
        row["documents_in"] = row["documents"] + sum(d["documents"] for d in row["dropped"].values())
        row["bytes"] = row["bytes_in"] = text_bytes
        rows.append(row)
    last = row_of("tokenize")
    last |= {"documents_in": rows[-1]["documents"], "bytes_in": rows[-1]["bytes"]}
    last |= {"documents": documents, "bytes": text_bytes}
    if lost:
        drop(last, "no tokens", rows[-1]["bytes"] - text_bytes, lost)
    return [*rows, last]


def reasons(rows: Funnel) -> dict[str, int]:
    """Documents by reason; those of a step bear its name."""
    out: dict[str, int] = {}
    for row in rows:
        for reason, counts in row["dropped"].items():
            name = reason if row["step"] in ("read", "tokenize") else f"{row['step']}: {reason}"
            out[name] = out.get(name, 0) + counts["documents"]
    return out


def table(rows: Funnel) -> list[str]:
    """A line a step, and below it one for each reason."""
    if not rows:  # prepared before funnels were kept
        return []
    first = max(rows[0]["documents_in"], 1)
    lines = [f"{'step':<44}{'documents':>14}{'share':>8}{'MB':>12}"]
    lines.append(_line("in", rows[0]["documents_in"], rows[0]["bytes_in"], first))
    for row in rows:
        for reason, counts in sorted(row["dropped"].items(), key=lambda item: -item[1]["documents"]):
            lines.append(_line(f"  - {row['step']}: {reason}", counts["documents"], counts["bytes"], first))
        lines.append(_line(row["step"], row["documents"], row["bytes"], first))
    return lines


def _line(name: str, documents: int, text_bytes: int, first: int) -> str:
    return f"{name:<44}{documents:>14,}{documents / first:>8.1%}{text_bytes / 1e6:>12,.2f}"
