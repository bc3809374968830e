"""A run through `pretrain launch --on slurm`, warned once and put back in the queue once, against one left in peace.

Starts a one-node SLURM of its own (Debian: slurmctld slurmd slurm-client munge) as root, in a temporary folder, and
stops it again. Exit code 3 when a loss differs.

    python benchmarks/slurm.py --steps 30
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """ClusterName=one
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=30
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path):
    """The environment of a SLURM of one node."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, cpus=os.cpu_count()))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nIgnoreSystemd=yes\n")
    environment = {**os.environ, "SLURM_CONF": str(config)}
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    os.chmod(folder, 0o755)
    names = ("socket", "pid", "log", "seed")
    options = [
        f"--{'key-file' if n == 'key' else n + ('-file' if n != 'socket' else '')}={folder}/munge.{n}" for n in names
    ]
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *options],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", host],
    ]
    running = []
    try:
        for command in commands:
            log = (folder / f"{command[0]}.out").open("w")
            running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(2)
        for command, process in zip(commands, running):
            if process.poll() is not None:
                said = (folder / f"{command[0]}.out").read_text()[-2000:]
                raise RuntimeError(f"{command[0]} ended with exit code {process.returncode}: {said}")
        yield environment
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(timeout=60)


def losses(run: Path) -> dict[int, set[float]]:
    """Every loss that was written for a step."""
    found: dict[int, set[float]] = {}
    path = run / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else ():
        facts = json.loads(line)
        found.setdefault(facts["step"], set()).add(facts["loss"])
    return found


def wait(condition, what: str, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.5)


def disturbed(folder: Path, environment: dict[str, str], train: list[str], steps: int) -> tuple[Path, int]:
    """(the run, how often SLURM started it)."""
    run = folder / "disturbed"
    words = [sys.executable, "-m", "pretrain", "launch", *train[:1], "--on", "slurm", "--venv", sys.prefix]
    words += ["--run", str(run), "--grace", "60", "--hours", "1", "--env", f"PYTHONPATH={ROOT}"]
    said = subprocess.run([*words, *train[1:]], env=environment, cwd=folder, capture_output=True, text=True, check=True)
    job = re.findall(r"\d+", said.stdout)[-1]

    def state() -> dict[str, str]:
        shown = subprocess.run(["scontrol", "show", "job", job], env=environment, capture_output=True, text=True)
        return dict(re.findall(r"(\w+)=(\S+)", shown.stdout))

    def reached(step: int) -> bool:
        return max(losses(run), default=0) >= step

    wait(lambda: reached(steps // 4), "a quarter of the run")
    subprocess.run(["scancel", "--signal=TERM", job], env=environment, check=True)
    wait(lambda: int(state()["Restarts"]) == 1, "SLURM to start it again after a warning")
    wait(lambda: reached(steps // 2), "half of the run")
    subprocess.run(["scontrol", "requeue", job], env=environment, check=True)
    wait(lambda: state()["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), "the end")
    if state()["JobState"] != "COMPLETED":
        log = "\n".join(p.read_text()[-3000:] for p in folder.glob("*.log"))
        raise RuntimeError(f"the job ended as {state()['JobState']}: {log}")
    return run, int(state()["Restarts"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    steps = parser.parse_args().steps
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    if missing:
        print(f"found no {', '.join(missing)}; apt-get install slurmctld slurmd slurm-client munge", file=sys.stderr)
        return 2
    train = [
        "runs.smoke",
        "--steps",
        str(steps),
        "--checkpoint.every",
        "5",
        "--evals.every",
        "1000",
        "--log.every",
        "1",
    ]
    train += ["--optimizer.schedule.warmup-steps", "2"]
    with tempfile.TemporaryDirectory(prefix="pretrain-slurm-") as name:
        folder = Path(name)
        with cluster(folder) as environment:
            began = time.monotonic()
            run, restarts = disturbed(folder, environment, train, steps)
            seconds = time.monotonic() - began
        peace = folder / "peace"
        alone = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "pretrain", "train", *train, "--run", str(peace)]
        subprocess.run(words, env=alone, cwd=folder, check=True, capture_output=True)
        one, other = losses(run), losses(peace)
    different = [step for step in range(1, steps + 1) if one.get(step) != other.get(step)]
    facts = {"steps": steps, "restarts": restarts, "seconds": round(seconds), "different_steps": different}
    print(json.dumps(facts))
    return 3 if different or restarts < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
