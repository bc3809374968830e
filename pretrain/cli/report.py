import os
from dataclasses import dataclass

from pretrain.cli import arguments, output, runs


@dataclass(frozen=True, kw_only=True)
class Report:
    """One offline HTML page about a run: curves, samples, config.

    examples:
      pretrain report smoke                                    writes runs/smoke/report.html
      pretrain report gs://bucket/runs/big --json
    """

    run: arguments.Run
    json: arguments.Json = False

    def __call__(self) -> None:
        run = runs.find(self.run)
        from pretrain.report import write_report

        page = os.fspath(write_report(run))
        output.show({"report": page}, self.json, [page])


COMMAND = Report
