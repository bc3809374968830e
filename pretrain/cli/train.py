import os
import sys
from dataclasses import dataclass

from pretrain import presets
from pretrain.cli import INTERRUPTED, arguments, output, runs
from pretrain.errors import UserError, check
from pretrain.sharding.processes import Processes


@dataclass(frozen=True, kw_only=True)
class Train:
    """Run or resume: the same command again continues. Any value of the config can be set: --optimizer.peak-lr 3e-4;
    pretrain config show CONFIG lists them all.

    examples:
      pretrain train runs.smoke                                a minute on two cores, in runs/smoke
      pretrain train runs.smoke --run runs/try --steps 20 --model.decoder.repeats 2
      pretrain train my_run.py --optimizer.schedule wsd --mesh.tensor 2 --rules fsdp_tp
      pretrain train runs/try --optimizer.peak-lr 1e-3 --allow optimizer.peak_lr
      pretrain train runs.smoke --simulate 8                   eight simulated devices
      pretrain train runs.smoke --coordinator host0:1234 --processes 2 --process 1
    """

    config: arguments.Config
    run: str | None = None
    """The run directory, also gs:// or s3://. Default: runs/ and the last part of CONFIG."""
    allow: tuple[str, ...] = ()
    """Fields that may differ from those the run was started with."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes."""
    processes: int | None = None
    """How many processes train together."""
    process: int | None = None
    """Which of them this is, from 0."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> int | None:
        from pretrain.sharding.processes import keep_memory

        keep_memory()
        processes = self._processes()
        also = ("run", "allow", "coordinator", "processes", "process", "json")
        config = presets.overrides(presets.load_run(self.config), self.overrides, also)
        run = self.run or runs.default(self.config)
        if "://" not in run and os.path.exists(run) and not os.path.isdir(run):
            raise UserError(f"{run}: found a file, expected a folder for the run; name another with --run")
        from etils import epath

        from pretrain.job import train

        allow = tuple(a.replace("-", "_") for a in self.allow)
        try:
            facts = train(config, epath.Path(run), processes=processes, allow=allow, preset=self.config)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
            raise
        output.show({"run": run, **facts}, self.json)
        return INTERRUPTED if facts.get("status") == "interrupted" else None

    def _processes(self) -> Processes | None:
        given = {"coordinator": self.coordinator, "processes": self.processes, "process": self.process}
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given):
            return None
        if self.coordinator is None or self.processes is None or self.process is None:
            raise UserError(*(f"{name}: missing, several processes need it; add --{name}" for name in missing))
        processes = Processes(coordinator=self.coordinator, count=self.processes, index=self.process)
        check(processes)
        return processes


COMMAND = Train
