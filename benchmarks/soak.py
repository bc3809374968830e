"""Faults at random moments of training, each followed by the same command; what is left is compared with a quiet run.

    python benchmarks/soak.py --faults 40 --seed 1
    python benchmarks/soak.py --faults 10 --seed 1 --processes 4

Every fault meets a session of one or two processes on the same mesh of two devices, or of as many as `--processes`
says, each with one device. There is a checkpoint every four steps and a copy on the machine at every other step. Disk
faults happen on a small file system in memory, which takes the right to mount one; without it they are skipped and
counted as such. A process that outlives the death of another is ended after PATIENCE seconds, as a launcher does.
Prints a line a fault, then a table; exit code 1 when a loss, a sample or a checkpoint is not as in the quiet run, when
a process or a temporary directory is left behind, or when a session hangs. The preparation of a corpus has its own
harness: kills.py --prepare.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from etils import epath

from benchmarks.kills import SAME, text
from pretrain.checkpoint import manifest, reading
from pretrain.doctor import examine
from pretrain.exchange import changed
from tests.train import tiny

HANG = 240
"""Seconds after which a session that should have ended counts as hung."""
PATIENCE = 3
STEPS_A_FAULT = 12
COPIES = "copies"
"""Where the copies between checkpoints are, beside the run: a machine's own disk."""
SHIFTED = "import sys, time; now, ns, by = time.time, time.time_ns, {by}; time.time = lambda: now() + by; "
SHIFTED += "time.time_ns = lambda: ns() + by * 10**9; from tests.train import tiny; tiny.main()"
"""A process whose wall clock is wrong by so many seconds."""
ROOM = {"usual": "200m", "none": "{used}k"}


class Session:
    """All processes of one start of the command, in one process group."""

    def __init__(self, corpus: Path, run: Path, steps: int, count: int, shift: int = 0):
        devices = max(2, count)
        self.run, self.before = run, _lines(run)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.log = os.open(run.parent / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        words = [str(corpus), str(run), f"steps={steps}", f"simulate={devices}", "every=4", "local_every=1"]
        words.append(f"local={run.parent / COPIES}")
        self.processes: list[subprocess.Popen] = []
        for index in range(count):
            program = ["-c", SHIFTED.format(by=shift)] if shift else ["-m", "tests.train.tiny"]
            several = [f"coordinator=127.0.0.1:{port}", f"count={count}", f"process={index}"] if count > 1 else []
            environment = os.environ | {"PYTHONPATH": str(tiny.ROOT), "XDG_CACHE_HOME": str(corpus.parent / "cache")}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, *program, *words, *several],
                    cwd=tiny.ROOT,
                    env=environment,
                    stdout=self.log,
                    stderr=self.log,
                    start_new_session=True,
                )
            )

    def alive(self) -> list[subprocess.Popen]:
        return [p for p in self.processes if p.poll() is None]

    def until(self, there: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while len(self.alive()) == len(self.processes) and time.monotonic() < deadline:
            if there():
                return True
            time.sleep(0.01)
        return False

    def steps(self, more: int) -> bool:
        return self.until(lambda: _lines(self.run) >= self.before + more, HANG)

    def saving(self) -> bool:
        folder = self.run / "checkpoints"
        return self.until(lambda: folder.exists() and any("tmp" in p.name for p in folder.iterdir()), HANG)

    def send(self, number: int, only: int | None = None) -> None:
        for p in self.alive() if only is None else [self.processes[only]]:
            if p.poll() is None:
                p.send_signal(number)

    def end(self, seconds: float = HANG) -> str:
        """Waits; "" or what is wrong. Whatever is left is killed."""
        hung = not self.wait(seconds)
        self.send(signal.SIGKILL)
        for p in self.processes:
            p.wait()
        os.close(self.log)
        left = [p.pid for p in self.processes if _group(p.pid)]
        return "hangs" if hung else f"processes left: {left}" if left else ""

    def wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.alive()

    def rest(self) -> str:
        """After the death of one: a launcher's warning, then its kill."""
        self.wait(PATIENCE)
        self.send(signal.SIGKILL)
        return self.end()


def _lines(run: Path) -> int:
    log = run / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def _group(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def moment(session: Session, rng: random.Random) -> str:
    """Waits for one, and names it."""
    where = rng.choice(("starting", "steps", "saving", "evaluating"))
    if where == "starting":
        time.sleep(rng.uniform(0, 9))
    elif where == "saving":
        session.saving()
    elif where == "evaluating":
        session.until(lambda: bool(lines := tiny.lines(session.run)) and lines[-1]["step"] % 10 == 0, 60)
    else:
        session.steps(rng.randint(1, STEPS_A_FAULT))
    time.sleep(rng.uniform(0, 0.03))
    return where


def kill(session: Session, rng: random.Random) -> str:
    session.send(signal.SIGKILL, rng.randrange(len(session.processes)))
    return session.rest()


def terminate(session: Session, rng: random.Random) -> str:
    session.send(signal.SIGTERM)
    return session.end()


def freeze(session: Session, rng: random.Random) -> str:
    session.send(signal.SIGSTOP, rng.randrange(len(session.processes)))
    time.sleep(rng.uniform(0.2, 2))
    session.send(signal.SIGCONT)
    session.steps(STEPS_A_FAULT)
    return kill(session, rng)


def freeze_and_kill(session: Session, rng: random.Random) -> str:
    session.send(signal.SIGSTOP, rng.randrange(len(session.processes)))
    time.sleep(rng.uniform(0.2, 1))
    session.send(signal.SIGKILL)
    return session.rest()


def interrupt(session: Session, rng: random.Random) -> str:
    """Two Ctrl-C: an exception in the middle of whatever runs."""
    for _ in range(2):
        session.send(signal.SIGINT)
        time.sleep(rng.uniform(0, 0.02))
    return session.rest()


def slow(session: Session, rng: random.Random) -> str:
    """Every process stands still again and again, as one does that waits for a disk; then it is killed."""
    for _ in range(20):
        session.send(signal.SIGSTOP)
        time.sleep(0.05)
        session.send(signal.SIGCONT)
        time.sleep(0.01)
    return kill(session, rng)


def full(session: Session, rng: random.Random) -> str:
    """No room while it trains; then some again, and a kill some steps later."""
    session.steps(1)
    used = int(
        subprocess.run(["df", "--output=used", "-k", session.run], capture_output=True, text=True).stdout.split()[1]
    )
    resize(session.run, f"{used + 40}k")
    session.steps(rng.randint(4, STEPS_A_FAULT))
    resize(session.run, ROOM["usual"])
    session.steps(STEPS_A_FAULT)
    return kill(session, rng)


def resize(run: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(run)], check=False, capture_output=True)


def damage(run: Path, rng: random.Random) -> str:
    """Of the newest checkpoint or the copies on the machine, between two sessions. What was done."""
    copied = [p for p in (run.parent / COPIES).rglob("*.safetensors") if p.stat().st_size]
    if copied and rng.random() < 0.5:
        for path in copied:
            _flip(path, rng)
        return "bit of a copy"
    steps = manifest.numbered(epath.Path(run / "checkpoints"))
    if not (run / "run.json").exists():
        return "before the first start"
    if len(steps) < 2:
        (run / "checkpoints" / "99999").mkdir(exist_ok=True)
        return "empty"
    step = run / "checkpoints" / str(steps[0])
    files = [p for p in step.rglob("*") if p.is_file() and p.parent.name == "d"]
    path, kind = max(files, key=lambda p: p.stat().st_size), rng.choice(("bit", "truncated", "missing", "manifest"))
    if kind == "bit":
        _flip(path, rng)
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    else:
        (path if kind == "missing" else step / manifest.NAME).unlink()
    return kind


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def export(run: Path, rng: random.Random) -> str:
    """Killed on its way, then repeated: "" or what is wrong with what it left."""
    out = run.parent / "export"
    command = [sys.executable, "-m", "pretrain", "export", str(run), "--to", str(out), "--check"]
    quiet = {"cwd": tiny.ROOT, "env": os.environ | {"PYTHONPATH": str(tiny.ROOT)}, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, **quiet)
    try:
        first.wait(rng.uniform(0, 12))
    except subprocess.TimeoutExpired:
        first.kill()
        first.wait()
    if out.exists() and (torn := list(changed(out))):
        return torn[0]
    shutil.rmtree(out, ignore_errors=True)
    again = subprocess.run(command, stdout=subprocess.DEVNULL, timeout=HANG, **quiet)
    if again.returncode:  # 3: other logits than the run
        return f"the export after a killed one ends with {again.returncode}"
    shutil.rmtree(out)
    left = [p.name for p in run.parent.iterdir() if p.name.startswith(".export")]
    return f"left behind by an export: {left}" if left else ""


FAULTS = {f.__name__: f for f in (kill, terminate, freeze, freeze_and_kill, interrupt, slow)}
ON_DISK = {"full": full, "read_only": None}
BETWEEN = ("damage", "clock", "export")


def read_only(corpus: Path, run: Path, steps: int) -> str:
    """A start on a disk that can only be read: an end with a sentence and without a traceback."""
    subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True)
    size = (run.parent / "log.txt").stat().st_size
    session = Session(corpus, run, steps, 1)
    problem = session.end()
    subprocess.run(["mount", "-o", "remount,rw", str(run)], check=True)
    told = (run.parent / "log.txt").read_text()[size:]
    return problem or ("" if session.processes[0].returncode and "Read-only" in told else "read-only disk not told")


def one(name: str, corpus: Path, run: Path, steps: int, rng: random.Random, processes: int | None) -> dict:
    count, at, done, problem, harmed = processes or rng.choice((1, 1, 2)), "", "", "", None
    if name == "read_only":
        return {"fault": name, "processes": 1, "at": "starting", "problem": read_only(corpus, run, steps)}
    if name == "damage":
        harmed = max(manifest.numbered(epath.Path(run / "checkpoints")), default=None)
        done = damage(run, rng)
    if name == "export" and manifest.latest(epath.Path(run / "checkpoints")):
        done, problem = "exporting", export(run, rng)
    session = Session(corpus, run, steps, count, rng.choice((-1, 1)) * 86_400 * 400 if name == "clock" else 0)
    if name in BETWEEN:
        session.steps(rng.randint(1, STEPS_A_FAULT))
        at, problem = done or "steps", "; ".join(p for p in (problem, kill(session, rng)) if p)
    elif name == "full":
        at, problem = "steps", full(session, rng)
    else:
        at = moment(session, rng)
        problem = FAULTS[name](session, rng)
    newest = manifest.latest(epath.Path(run / "checkpoints"))
    if (
        newest is not None and not problem and newest != harmed
    ):  # by us, and a newer copy spared the run from reading it
        problem = "; ".join(reading.verify(epath.Path(run / "checkpoints" / str(newest))))
    return {"fault": name, "processes": count, "at": at, "newest": newest, "problem": problem}


def compare(run: Path, reference: dict[int, dict], steps: int) -> list[str]:
    lines = tiny.lines(run)
    wrong = [f"step {x['step']} {k}" for x in lines for k in SAME if x[k] != reference[x["step"]][k]]
    wrong += [f"step {s} is missing" for s in sorted(set(range(1, steps + 1)) - {x["step"] for x in lines})]
    left = [p.name for p in (run / "checkpoints").iterdir() if not p.name.isdigit() and p.name != manifest.DAMAGED]
    wrong += [f"left behind: {name}" for name in left]
    return wrong + [f"doctor: {f.where} {f.what}" for f in examine(epath.Path(run)) if f.severity == "error"]


def soak(folder: Path, options: argparse.Namespace) -> int:
    rng, began = random.Random(options.seed), time.monotonic()
    corpus, run, calm = text(folder / "text"), folder / "run", folder / "calm"
    steps = STEPS_A_FAULT * options.faults
    run.mkdir()
    mounted = not subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM['usual']}", "tmpfs", str(run)]).returncode
    try:
        count = options.processes or 1
        if problem := Session(corpus, calm, steps, count).end(HANG + steps):
            raise SystemExit(f"the quiet run: {problem}")
        reference = {line["step"]: line for line in tiny.lines(calm)}
        names = [options.only] if options.only else [*FAULTS, *(ON_DISK if mounted else ()), *BETWEEN]
        done = []
        for number in range(options.faults):
            done.append(one(names[(number + options.seed) % len(names)], corpus, run, steps, rng, options.processes))
            print(json.dumps(done[-1]), flush=True)
        problem = Session(corpus, run, steps, count).end()
        wrong = ([problem] if problem else []) + compare(run, reference, steps)
        repeated = len(tiny.lines(run)) - steps
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(run)], check=False)
    table(done, wrong, [] if mounted else list(ON_DISK))
    print(json.dumps({"steps": steps, "repeated_steps": repeated, "seconds": round(time.monotonic() - began)}))
    return 1 if wrong or any(d["problem"] for d in done) else 0


def table(done: list[dict], wrong: list[str], skipped: list[str]) -> None:
    count, bad = Counter(d["fault"] for d in done), Counter(d["fault"] for d in done if d["problem"])
    print("| fault | times | violations |\n|---|---|---|")
    for name in count:
        print(f"| {name} | {count[name]} | {bad[name]} |")
    for name in skipped:
        print(f"| {name} | skipped: no right to mount | |")
    print(f"| all losses, samples, leftovers | {len(done)} | {len(wrong)} |")
    for line in wrong[:20]:
        print(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*FAULTS, *ON_DISK, *BETWEEN], help="this fault; otherwise all in turn")
    parser.add_argument("--processes", type=int, help="of every session; otherwise one or two")
    with tempfile.TemporaryDirectory() as folder:
        return soak(Path(folder), parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
