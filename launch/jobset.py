"""GKE: a JobSet (jobset.x-k8s.io/v1alpha2) of one indexed Job whose pods are the hosts of a slice."""

from typing import Any

from pretrain.errors import UserError
from pretrain.launch.description import PORT, Launch
from pretrain.launch.emit import yaml

ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
    "h100": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}
"""Node labels: cloud.google.com/kubernetes-engine/docs, "Plan TPUs in GKE" and "About GPUs"."""
WORKERS = "workers"
PREEMPTED = 1
"""Of a pod that saved because it was told to: the Job must count it as failed, so that the JobSet starts again."""


def manifest(launch: Launch) -> str:
    return yaml(jobset(launch))


def jobset(launch: Launch) -> dict[str, Any]:
    """Raises UserError without an image or a slice."""
    if launch.image is None or launch.slice is None:
        raise UserError("gke runs a container on a slice, expected both; add --image IMAGE and --slice v5p-128")
    labels = {"kueue.x-k8s.io/queue-name": launch.partition} if launch.partition else {}
    job = {
        "parallelism": launch.hosts,
        "completions": launch.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "template": {"spec": _pod(launch)},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": launch.name,
            **({"labels": labels} if labels else {}),
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {"maxRestarts": launch.retries},
            "network": {"enableDNSHostnames": True, "subdomain": launch.name},
            "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": job}}],
        },
    }


def _pod(launch: Launch) -> dict[str, Any]:
    assert launch.slice is not None
    chip = launch.slice.chip
    selector = {"cloud.google.com/gke-accelerator": ACCELERATORS[chip.name]}
    if not launch.is_gpu:
        shape = "x".join(map(str, launch.slice.shape))
        selector = {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[chip.name],
            "cloud.google.com/gke-tpu-topology": shape,
        }
    if launch.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    resource = "nvidia.com/gpu" if launch.is_gpu else "google.com/tpu"
    amount = {resource: launch.chips_a_host}
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": launch.grace,
        "nodeSelector": selector,
        "containers": [
            {
                "name": "pretrain",
                "image": launch.image,
                "command": ["bash", "-c", _script(launch)],
                "env": [{"name": name, "value": value} for name, value in launch.variables().items()],
                "ports": [{"containerPort": PORT}],
                "resources": {"limits": amount, "requests": amount},
            }
        ],
    }


def _script(launch: Launch) -> str:
    """The shell hands SIGTERM on, as it is the container's first process."""
    first = f"{launch.name}-{WORKERS}-0-0.{launch.name}"
    return "\n".join(
        [
            f"{launch.command(first, '$JOB_COMPLETION_INDEX')} > /tmp/answer &",
            "run=$!",
            "trap 'kill -TERM $run' TERM",
            'while kill -0 "$run" 2> /dev/null; do wait "$run"; code=$?; done',
            "cat /tmp/answer",
            f'grep -q \'"status": "preempted"\' /tmp/answer && exit {PREEMPTED}',
            'exit "$code"',
            "",
        ]
    )


def submit(launch: Launch) -> tuple[list[str], str]:
    return ["kubectl", "apply", "-f", "-"], manifest(launch)
