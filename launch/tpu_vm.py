"""TPU VMs: a queued resource whose hosts run a startup script (docs.cloud.google.com/tpu/docs/queued-resources)."""

import shlex

from pretrain.errors import UserError
from pretrain.launch.description import Launch

RUNTIMES = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""docs.cloud.google.com/tpu/docs/runtimes; tpu7x is ordered through GKE."""
METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes"


def startup(launch: Launch) -> str:
    """Of every host. It tries again after a failure; whoever deletes the resource ends it, and a spot slice that is
    taken away comes back by ordering it again with the same command."""
    endpoints = f"curl -s -H Metadata-Flavor:Google {METADATA}/worker-network-endpoints"
    step = launch.command("$PRETRAIN_COORDINATOR", "$PRETRAIN_PROCESS")
    container = ""
    if launch.image:
        names = " ".join(f"-e {name}" for name in launch.variables())
        container = f"docker run --rm --privileged --net=host {names} {shlex.quote(launch.image)} "
    lines = [
        "#!/bin/bash",
        "set -u",
        *launch.prepare(),
        *launch.exports(),
        f"export PRETRAIN_PROCESS=$(curl -s -H Metadata-Flavor:Google {METADATA}/agent-worker-number)",
        f"export PRETRAIN_COORDINATOR=$({endpoints} | cut -d, -f1 | cut -d: -f3)",
        f"for attempt in $(seq 0 {launch.retries}); do",
        f"  {container}{step} > /var/log/pretrain.json 2> >(tee -a /var/log/pretrain.log >&2)",
        "  code=$?",
        '  [ "$code" -eq 2 ] && exit 2  # the input is wrong: again would not help',
        '  [ "$code" -eq 0 ] && ! grep -q \'"status": "preempted"\' /var/log/pretrain.json && exit 0',
        "  sleep 30",
        "done",
        "exit 1",
    ]
    return "\n".join(lines) + "\n"


def create(launch: Launch) -> list[str]:
    """Raises UserError without a TPU slice, a project and a zone."""
    chip = launch.slice.chip if launch.slice else None
    if launch.slice is None or chip is None or chip.name not in RUNTIMES:
        found = launch.slice.vendor if launch.slice else "no slice"
        raise UserError(f"slice: found {found}, tpu-vm orders {', '.join(RUNTIMES)}; name one, or use gke or sky")
    if launch.project is None or launch.zone is None:
        raise UserError("tpu-vm needs a project and a zone, expected both; add --project NAME --zone us-east5-a")
    kind = launch.slice.vendor.replace("v5e-", "v5litepod-")
    return [
        *("gcloud", "compute", "tpus", "queued-resources", "create", launch.name),
        f"--node-id={launch.name}",
        f"--project={launch.project}",
        f"--zone={launch.zone}",
        f"--accelerator-type={kind}",
        f"--runtime-version={RUNTIMES[chip.name]}",
        "--metadata-from-file=startup-script=/dev/stdin",
        *(["--spot"] if launch.spot else []),
    ]


def manifest(launch: Launch) -> str:
    """The command with the script as its input."""
    return f"{shlex.join(create(launch))} << 'SCRIPT'\n{startup(launch)}SCRIPT\n"


def submit(launch: Launch) -> tuple[list[str], str]:
    return create(launch), startup(launch)
