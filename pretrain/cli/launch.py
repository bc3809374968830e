import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from typing import Literal

from pretrain import presets
from pretrain.cli import arguments, output, runs
from pretrain.config import RunConfig
from pretrain.errors import UserError, check


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Start a run on a cluster: SLURM, GKE, TPU VMs, SkyPilot. Options of the config go on to pretrain train there.

    examples:
      pretrain launch runs.pretrain_llama_1b --on slurm --slice h100:64 --run /shared/runs/llama --dry-run
      pretrain launch runs.pretrain_llama_1b --on gke --slice v5p-128 --image gcr.io/me/pretrain --run gs://bucket/llama
      pretrain launch runs.pretrain_llama_1b --on tpu-vm --slice v5p-128 --project me --zone us-east5-a --run gs://b/r
      pretrain launch runs.smoke --on slurm --nodes 1 --venv /shared/venv --run /shared/runs/smoke --steps 20
    """

    config: arguments.Config
    on: Literal["slurm", "gke", "tpu-vm", "sky"]
    """The site."""
    slice: str | None = None
    """Chips: v5p-128, v5e:16, h100:64. Default: hosts without accelerators."""
    run: str | None = None
    """The run directory, which every host sees: gs://, s3:// or a shared folder. Default: runs/NAME."""
    name: str | None = None
    """Of the job. Default: the run's."""
    nodes: int = 1
    """Hosts, where there is no slice."""
    image: str | None = None
    """A container that holds pretrain."""
    venv: str | None = None
    """A virtual environment that holds pretrain, on every host."""
    env: tuple[str, ...] = ()
    """More variables, NAME=VALUE."""
    hours: float = 24.0
    """Time limit of one attempt."""
    partition: str | None = None
    """Of SLURM; the Kueue queue of GKE."""
    retries: int = 100
    """Attempts after a pre-emption or a failure."""
    grace: int = 300
    """Seconds for saving, between the warning and the end."""
    project: str | None = None
    """Of Google Cloud."""
    zone: str | None = None
    """Of Google Cloud."""
    spot: bool = False
    """Cheaper machines that may be taken away."""
    force: bool = False
    """Also what pretrain plan says cannot fit."""
    dry_run: bool = False
    """Print the manifest, submit nothing."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        config = presets.overrides(presets.load_run(self.config), self.overrides, ("run", "on", "slice", "dry_run"))
        launch, site = self._description(config), _site(self.on)
        text = site.manifest(launch)
        if not self.force:
            _require_room(config, launch)
        if self.dry_run:
            output.show({"on": self.on, "manifest": text}, self.json, [text.rstrip("\n")])
            return
        command, given = site.submit(launch)
        if shutil.which(command[0]) is None:
            raise UserError(f"{self.on}: found no command {command[0]}, expected it here; install it, or add --dry-run")
        done = subprocess.run(command, input=given, text=True, capture_output=True)
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())
            raise UserError(f"{shlex.join(command)} refused the job ({said}); correct it, --dry-run shows the manifest")
        output.show({"on": self.on, "answer": done.stdout.strip()}, self.json, [done.stdout.strip()])

    def _description(self, config: RunConfig):
        from pretrain.launch import description
        from pretrain.plan import chips

        wrong = [e for e in self.env if "=" not in e]
        if wrong:
            raise UserError(*(f"env={e}: expected NAME=VALUE; write {e}=1" for e in wrong))
        run = self.run or runs.default(self.config)
        name = self.name or run.rstrip("/").rsplit("/", 1)[-1].lower().replace("_", "-")
        kept = {k: getattr(self, k) for k in ("nodes", "image", "venv", "hours", "partition", "retries", "grace")}
        launch = description.Launch(
            name=name,
            train=(self.config, *self.overrides),
            run=run,
            slice=chips.parse(self.slice) if self.slice else None,
            environment=tuple((e.split("=", 1)[0], e.split("=", 1)[1]) for e in self.env),
            **{**kept, "project": self.project, "zone": self.zone, "spot": self.spot},
        )
        extras = "cuda" if launch.is_gpu else "tpu"
        extras += ",quant" if config.model.matmuls != {"float"} else ""
        launch = replace(launch, install=f"pretrain[{extras}]")
        check(launch)
        return launch


def _site(on: str):
    import importlib

    return importlib.import_module(f"pretrain.launch.{'jobset' if on == 'gke' else on.replace('-', '_')}")


def _require_room(config: RunConfig, launch) -> None:
    """Raises UserError for a run that its plan says does not fit: a compiled plan where there is one."""
    if launch.slice is None:
        return
    os.environ["JAX_PLATFORMS"] = "cpu"  # arithmetic needs no chip of this machine
    from pretrain.plan import compiler, plan, report

    config = replace(config, simulate=None)
    config.check(launch.slice.devices)
    found = plan.assembled(config, launch.slice, compiler.cached(config, launch.slice))
    if found["fits"]:
        return
    memory = found["memory"]
    changes = " or ".join(c.told() for c in plan.advice(config, launch.slice, found)[:2]) or "a larger --slice"
    raise UserError(
        f"does not fit {launch.slice.vendor}: needs {report.gib(memory['peak_bytes'])} of "
        f"{report.gib(memory['limit_bytes'])} GiB a device ({found['basis']}); try {changes}, or --force"
    )


COMMAND = Launch
