"""The page itself: a template, filled with text that is escaped and numbers that are JSON."""

import json
import re
import secrets
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from etils import epath

from pretrain.report import fragments, summary
from pretrain.report.curves import curves
from pretrain.report.record import read


def write_report(run: epath.Path) -> epath.Path:
    """Writes `report.html` into a run directory and returns its path; whatever is missing is named on the page."""
    record = read(epath.Path(run))
    drawn = curves(record)
    page = Template(_resource("page.html")).substitute(
        title=fragments.text(record.name),
        status=record.status,
        status_class=record.status.replace(" ", "-"),
        subtitle=fragments.text(summary.subtitle(record)),
        tiles=fragments.tiles(summary.tiles(record)),
        facts=fragments.pairs(summary.facts(record)),
        notices=fragments.notices(summary.notices(record)),
        axes=fragments.axis_buttons(drawn["axes"]),
        charts=fragments.charts(drawn["charts"]),
        evaluations=fragments.evaluations(record),
        samples=fragments.samples(record.samples),
        goodput=fragments.goodput(record),
        config=fragments.config(record.facts.get("config")),
        changes=fragments.changes(record.facts),
        command=fragments.command(record.facts),
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        nonce=secrets.token_urlsafe(16),
        style=_resource("page.css"),
        script=_resource("page.js"),
        plotly=plotly(),
        data=embedded(drawn),
    )
    out = epath.Path(run) / "report.html"
    out.write_text(page)
    return out


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def plotly() -> str:
    """plotly.js without the addresses of its map tiles and its logo, which no chart here shows."""
    from plotly.offline import get_plotlyjs

    return re.sub(r"""((?:src|href)\s*=\s*\\?["'`]?)https?:[^"'`\\ >]*""", r"\1#", get_plotlyjs())


def _resource(name: str) -> str:
    return files("pretrain.report").joinpath(name).read_text(encoding="utf-8")
