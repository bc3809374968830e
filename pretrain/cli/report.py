import os
from dataclasses import dataclass

from pretrain.cli import arguments, output, runs


@dataclass(frozen=True, kw_only=True)
class Report:
    """One offline HTML page about a run: curves, samples, config.

    examples:
      pretrain report smoke                                    writes runs/smoke/report.html
      pretrain report gs://bucket/runs/big --json
      pretrain report smoke --goodput                          where its time went, as a table
    """

    run: arguments.Run
    goodput: bool = False
    """Print where the time went, write no page."""
    json: arguments.Json = False

    def __call__(self) -> None:
        run = runs.find(self.run)
        if self.goodput:
            from pretrain.metrics.goodput import goodput, table
            from pretrain.metrics.sinks import read_lines

            facts = goodput(read_lines(run / "metrics.jsonl"), read_lines(run / "events.jsonl"))
            return output.show(facts, self.json, table(facts))
        from pretrain.report import write_report

        page = os.fspath(write_report(run))
        output.show({"report": page}, self.json, [page])


COMMAND = Report
