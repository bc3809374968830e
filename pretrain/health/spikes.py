"""What a run decides about spikes, on the host: events, steps that are left out, ways back.

Decisions to leave steps out lie in RUN/skipped.json, so that every later session repeats them. A spike is found before
a checkpoint of its step is written; a session that is killed between the two finds it again and decides the same.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from etils import epath

from pretrain import untrusted
from pretrain.errors import CheckFailed, UserError
from pretrain.health.config import HealthConfig, LowerLr, Rewind, Skip, Stop
from pretrain.metrics.sinks import Recorder
from pretrain.serial import decode

FILE = "skipped.json"


@dataclass(frozen=True, kw_only=True)
class Decision:
    spike: int
    first: int
    last: int
    """Steps whose batches are left out, both included."""
    back_to: int = 0
    """The step gone on from."""


class Rewound(Exception):
    """The run has to go back; `decision.back_to` is not known yet."""

    def __init__(self, decision: Decision):
        super().__init__(decision)
        self.decision = decision


class Spikes:
    def __init__(self, config: HealthConfig, run: epath.Path, recorder: Recorder):
        self.config, self.run, self.recorder = config, run, recorder
        self.decisions = read(run)

    def left_out(self, step: int) -> bool:
        return any(d.first <= step <= d.last for d in self.decisions)

    def see(self, step: int, values: Mapping[str, float]) -> None:
        """Raises Rewound or CheckFailed where the policy asks for it. Losses that are not finite count as spikes."""
        finite = math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
        if finite and not values["spike"]:
            return
        policy, what = self.config.policy, _told(values)
        facts = {k: values[k] for k in ("loss", "grad_norm", "loss_z", "grad_norm_z")}
        self.recorder.event("spike", step=step, policy=type(policy).__name__, **facts)
        match policy:
            case Skip() if values["skipped"] > policy.in_a_row:
                self._end(
                    step, f"{what}; {policy.in_a_row} steps before it were skipped too", "lower optimizer.peak_lr"
                )
            case Rewind():
                first = max(step - policy.back, 0) + 1
                if len(self.decisions) >= policy.most:
                    self._end(step, f"{what}; it is spike {policy.most + 1}", "lower optimizer.peak_lr")
                raise Rewound(Decision(spike=step, first=first, last=first + policy.skip - 1))
            case Stop():
                self._end(step, what, "leave its batch out with --health.policy skip, or lower optimizer.peak_lr")
            case LowerLr():
                lowered = {"factor": policy.factor, "until": step + policy.steps}
                self.recorder.event("lowered", step=step, **lowered)

    def decide(self, decision: Decision, first: int, back_to: int, log_every: int) -> Decision:
        """Written before anything is computed by it. A way back that is shorter than wished leaves out what it can."""
        last = max(first + decision.last - decision.first, decision.spike)
        made = replace(decision, first=first, last=last, back_to=back_to)
        self.decisions.append(made)
        if self.recorder.active:
            write(self.run, self.decisions)
        facts = {"spike": made.spike, "first_skipped": made.first, "last_skipped": made.last, "log_every": log_every}
        self.recorder.event("rewind", step=back_to, **facts)
        return made

    def _end(self, step: int, what: str, do: str) -> None:
        reason = f"{what} at step {step}"
        self.recorder.event("failed", step=step, reason=reason)
        raise CheckFailed(f"{reason}; {do}")


def _told(values: Mapping[str, float]) -> str:
    parts = (("loss", "loss", "loss_z"), ("gradient norm", "grad_norm", "grad_norm_z"))
    return "found " + " and ".join(f"{name} {values[x]:.6g} ({values[z]:.1f} sigmas)" for name, x, z in parts)


def read(run: epath.Path) -> list[Decision]:
    path = run / FILE
    if not path.exists():
        return []
    try:
        return list(decode(untrusted.load(path), tuple[Decision, ...], str(path)))
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path}: not readable ({type(error).__name__}), expected the steps that this run leaves out; restore it"
        ) from None


def write(run: epath.Path, decisions: list[Decision]) -> None:
    temporary = run / f"{FILE}.new"
    temporary.write_text(json.dumps([asdict(d) for d in decisions], indent=1))
    temporary.replace(run / FILE)
