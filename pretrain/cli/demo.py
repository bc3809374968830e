from dataclasses import dataclass
from typing import TYPE_CHECKING

from pretrain.cli import arguments, output
from pretrain.errors import UserError

if TYPE_CHECKING:
    from etils import epath


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A tour on real text without a download: trains a tokenizer and a small Llama on the Python standard library,
    checkpoints, resumes, samples, exports, writes report.html. About three minutes on two cores.

    examples:
      pretrain demo
      pretrain demo --fresh --run /tmp/demo
    """

    run: str = "runs/demo"
    """The run directory; an unfinished one is continued."""
    fresh: bool = False
    """Delete it first."""
    json: arguments.Json = False

    def __call__(self) -> None:
        from etils import epath

        run = epath.Path(self.run)
        if self.fresh and run.exists():
            require_demo(run)
        from pretrain.demo import demo

        output.show(demo(run, self.fresh), self.json)


def require_demo(run: "epath.Path") -> None:
    """Raises UserError where a demo did not write the folder that would be deleted."""
    if run.is_dir() and {path.name for path in run.iterdir()} <= {"data"}:
        return
    from pretrain import run as runs

    facts = (runs.read(run) if run.is_dir() else None) or {}
    if facts.get("preset") != "runs.demo":
        raise UserError(f"{run}: found something that is no demo, which --fresh would delete; name another --run")


COMMAND = Demo
