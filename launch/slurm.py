"""SLURM: a batch script, one task a node. sbatch(1), srun(1) and scontrol(1) say what the words mean."""

import math
import shlex

from pretrain.launch.description import Launch


def manifest(launch: Launch) -> str:
    """A script for `sbatch`. A warning, a pre-emption or a failure that is not the input's puts the job back in the
    queue, and the run goes on from its last checkpoint."""
    minutes = math.ceil(launch.hours * 60)
    directives = [
        f"--job-name={launch.name}",
        f"--nodes={launch.hosts}",
        "--ntasks-per-node=1",
        f"--time={minutes}",
        "--requeue",
        "--open-mode=append",
        f"--signal=TERM@{launch.grace}",
        "--output=%x-%j.log",
    ]
    if launch.is_gpu:
        directives += [f"--gpus-per-node={launch.chips_a_host}", "--exclusive"]
    if launch.partition:
        directives.append(f"--partition={launch.partition}")
    container = f" --container-image={shlex.quote(launch.image)}" if launch.image else ""
    step = launch.command("$PRETRAIN_COORDINATOR", "$SLURM_PROCID")
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {d}" for d in directives),
        "set -u",
        *launch.prepare(),
        *launch.exports(),
        'export PRETRAIN_COORDINATOR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "again() {",
        f'  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {launch.retries} ] && scontrol requeue "$SLURM_JOB_ID"',
        "}",
        'answer="$SLURM_JOB_NAME-$SLURM_JOB_ID.json"',
        f'srun{container} --kill-on-bad-exit=1 bash -c {shlex.quote(step)} > "$answer" &',
        "step=$!",
        "trap : TERM  # of scancel and pre-emption; srun passes it on to its tasks",
        'while kill -0 "$step" 2> /dev/null; do wait "$step"; code=$?; done',
        'cat "$answer"',
        '[ "$code" -eq 2 ] && exit 2  # the input is wrong: again would not help',
        'if [ "$code" -ne 0 ] || grep -q \'"status": "preempted"\' "$answer"; then again && exit 0; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def submit(launch: Launch) -> tuple[list[str], str]:
    """(command, its input)."""
    return ["sbatch"], manifest(launch)
