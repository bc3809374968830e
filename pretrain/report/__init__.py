"""One offline page about a run."""

from pretrain.report.page import write_report

__all__ = ["write_report"]
