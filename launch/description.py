"""What is launched, as a value. Each site renders it in its own words."""

import re
import shlex
from dataclasses import dataclass

from pretrain.plan.chips import SHARE, Slice

PORT = 8476
"""Where the first process listens. JAX's coordinator asks nobody for a password: keep the port inside the network."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    name: str
    train: tuple[str, ...]
    """Words behind `pretrain train`: CONFIG and options."""
    run: str
    """The run directory, which every host sees: gs://, s3:// or a shared folder."""
    slice: Slice | None = None
    """None: hosts without accelerators."""
    nodes: int = 1
    """Hosts, where there is no slice; each is one process."""
    image: str | None = None
    """Container; None where `venv` is used."""
    venv: str | None = None
    """Folder of a virtual environment, there on every host."""
    install: str = "pretrain[tpu]"
    """What pip installs where there is neither an image nor a folder."""
    environment: tuple[tuple[str, str], ...] = ()
    hours: float = 24.0
    """Time limit of one attempt, where the site has one."""
    partition: str | None = None
    """Of SLURM; on GKE the Kueue queue."""
    retries: int = 100
    """Attempts after a pre-emption or a failure."""
    grace: int = 300
    """Seconds between the warning and the end, in which the run saves."""
    project: str | None = None
    zone: str | None = None
    spot: bool = False

    def checks(self) -> tuple[tuple[bool, str], ...]:
        named = re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name)
        wrong = [k for k, _ in self.environment if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", k)]
        return (
            (named is not None, f"name={self.name}: expected at most 40 of a-z, 0-9 and -, a letter first; add --name"),
            (self.nodes > 0, f"nodes={self.nodes}: expected 1 or more hosts; leave it out for the slice's"),
            (self.hours > 0, f"hours={self.hours}: expected a positive number; set the limit of one attempt"),
            (self.retries >= 0, f"retries={self.retries}: expected 0 or more; 0 never starts again"),
            (self.grace > 0, f"grace={self.grace}: expected a positive number of seconds; a save needs some"),
            (not wrong, f"env: {wrong} are no names of variables; write NAME=VALUE"),
            (
                not (self.image and self.venv),
                f"image={self.image} and venv={self.venv}: expected one of them; leave the other out",
            ),
        )

    @property
    def hosts(self) -> int:
        return self.nodes if self.slice is None else self.slice.hosts

    @property
    def is_gpu(self) -> bool:
        return self.slice is not None and self.slice.chip.dimensions is None

    @property
    def chips_a_host(self) -> int:
        return 0 if self.slice is None else min(self.slice.chips, self.slice.chip.hosts)

    def variables(self) -> dict[str, str]:
        """Environment of every process; what the user sets wins."""
        base = {"JAX_COMPILATION_CACHE_DIR": f"{self.run.rstrip('/')}/xla"}
        if self.is_gpu:
            base["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(SHARE)
        if self.slice is None:
            base["JAX_PLATFORMS"] = "cpu"
        return {**base, **dict(self.environment)}

    def command(self, coordinator: str, process: str) -> str:
        """The shell's words for one process; the arguments are shell expressions."""
        words = ["python3", "-m", "pretrain", "train", *self.train, "--run", self.run, "--json"]
        line = shlex.join(words)
        if self.hosts > 1:
            line += f' --coordinator "{coordinator}:{PORT}" --processes {self.hosts} --process "{process}"'
        return line

    def prepare(self) -> list[str]:
        """Lines that let Python find pretrain."""
        if self.image:
            return []
        if self.venv:
            return [f". {shlex.quote(self.venv)}/bin/activate"]
        return [
            "python3 -m venv ~/.pretrain && . ~/.pretrain/bin/activate",
            f"pip install --quiet {shlex.quote(self.install)}",
        ]

    def exports(self) -> list[str]:
        return [f"export {name}={shlex.quote(value)}" for name, value in self.variables().items()]
