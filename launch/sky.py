"""SkyPilot: a managed job, which is started again elsewhere when it is pre-empted (docs.skypilot.co, YAML spec)."""

from typing import Any

from pretrain.errors import UserError
from pretrain.launch.description import Launch
from pretrain.launch.emit import yaml

PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: the job is started again."""


def manifest(launch: Launch) -> str:
    return yaml(task(launch))


def task(launch: Launch) -> dict[str, Any]:
    """Raises UserError without a slice."""
    if launch.slice is None:
        raise UserError("sky finds machines by their accelerators, found no slice; add --slice h100:16 or v5p-128")
    chip = launch.slice.chip
    kind = f"{chip.name.upper()}:{launch.chips_a_host}"
    if not launch.is_gpu:
        kind = f"tpu-{launch.slice.vendor.replace('v5e-', 'v5litepod-')}"
    resources: dict[str, Any] = {
        "accelerators": kind,
        "use_spot": launch.spot,
        "job_recovery": {
            "strategy": "EAGER_NEXT_REGION",
            "max_restarts_on_errors": launch.retries,
            "recover_on_exit_codes": [PREEMPTED],
        },
    }
    if launch.image:
        resources["image_id"] = f"docker:{launch.image}"
    if launch.zone:
        resources["infra"] = f"gcp/*/{launch.zone}"
    setup = launch.prepare()
    return {
        "name": launch.name,
        "num_nodes": launch.hosts if launch.is_gpu else 1,
        "resources": resources,
        "envs": launch.variables(),
        **({"setup": "\n".join(setup) + "\n"} if setup else {}),
        "run": _script(launch),
    }


def _script(launch: Launch) -> str:
    activate = launch.prepare()[:1]
    step = launch.command("$PRETRAIN_COORDINATOR", "$SKYPILOT_NODE_RANK")
    return "\n".join(
        [
            *activate,
            'export PRETRAIN_COORDINATOR=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
            f"{step} > /tmp/answer",
            "code=$?",
            "cat /tmp/answer",
            f'grep -q \'"status": "preempted"\' /tmp/answer && exit {PREEMPTED}',
            'exit "$code"',
            "",
        ]
    )


def submit(launch: Launch) -> tuple[list[str], str]:
    return ["sky", "jobs", "launch", "--yes", "--name", launch.name, "/dev/stdin"], manifest(launch)
