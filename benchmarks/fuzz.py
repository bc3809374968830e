"""Damages valid small files at random and gives them to the readers: each ends in a value or a UserError, soon and in
little memory.

    python benchmarks/fuzz.py --cases 1000000 --seed 0
    python benchmarks/fuzz.py --reader gguf --cases 10000
    python benchmarks/fuzz.py --reader gguf --seed 0 --only 4711 --debug

Prints a JSON line a reader: `cases`, of them `refused` and `accepted`, `failures`, `seconds` of the processor with the
start of the process, `slowest` (those of one case) and `grown` (MB of memory since the first case). Every failure is a
line too, and its files are kept in --save; --only repeats a case. The exit code is 1 where there was a failure. A
reader runs in one process of its own, which may take 2 GB more than it began with: more is a failure, so are 20 s for a
case and a crash of the process.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import readers, readers_runs
from benchmarks.readers import Reader
from pretrain.errors import UserError

READERS = {reader.name: reader for reader in (*readers.READERS, *readers_runs.READERS)}
ROOM = 2 << 30  # bytes of address space beyond those of the first case
PATIENCE = 20  # seconds of one case


class Fuzz:
    """The cases of one reader, each of which follows from (seed, reader, number)."""

    def __init__(self, reader: Reader, seed: int, folder: Path):
        self.reader, self.seed, self.folder = reader, seed, folder
        reader.make(folder)
        self.subjects = reader.subjects(folder)
        reader.read(folder)  # as it should be
        self.counts, self.slowest, self.failures = Counter(), 0.0, []

    def files(self, number: int) -> dict[str, bytes]:
        """The damaged ones of a case."""
        rng = random.Random(f"{self.seed}/{self.reader.name}/{number}")
        names = rng.sample(list(self.subjects), min(len(self.subjects), rng.choice((1, 1, 1, 2))))
        return {name: self.subjects[name].damaged(rng) for name in names}

    def run(self, number: int) -> None:
        files, began = self.files(number), time.process_time()
        for name, data in files.items():
            (self.folder / name).write_bytes(data)
        try:
            self.reader.read(self.folder)
            self.counts["accepted"] += 1
        except UserError as error:
            self.counts["refused"] += 1
            if any("\n" in problem or len(problem) > 5000 for problem in error.problems):
                self.failures.append((number, "a problem of more than one line", files))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            self.failures.append((number, f"{_place(error)} {type(error).__name__}: {str(error)[:200]}", files))
        for name in files:
            (self.folder / name).write_bytes(self.subjects[name].data)
        self.slowest = max(self.slowest, time.process_time() - began)


def _place(error: BaseException) -> str:
    """The last line of ours that an error passed."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


def _keep(folder: Path, name: str, number: int, files: dict[str, bytes]) -> None:
    for file, data in files.items():
        path = folder / name.replace(" ", "_") / str(number) / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def memory() -> float:
    """MB, at the most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def inside(args: argparse.Namespace) -> None:
    """The process of one reader; writes the number of the case it is at into a file, for its parent."""
    with tempfile.TemporaryDirectory(dir=_fast()) as folder, open(args.at, "r+b", buffering=0) as at:
        os.chdir(folder)
        fuzz = Fuzz(READERS[args.reader], args.seed, Path(folder))
        before = memory()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        said = 0
        for number in range(args.begin, args.begin + args.cases):
            os.pwrite(at.fileno(), f"{number:020d}".encode(), 0)
            fuzz.run(number)
            for failed, what, files in fuzz.failures[said:]:
                print(json.dumps({"reader": args.reader, "case": failed, "failure": what}), flush=True)
                _keep(args.save, args.reader, failed, files)
            said = len(fuzz.failures)
        print(
            json.dumps(
                {
                    "cases": args.cases,
                    **{k: fuzz.counts[k] for k in ("refused", "accepted")},
                    "failures": said,
                    "seconds": round(time.process_time(), 1),
                    "slowest": round(fuzz.slowest, 3),
                    "grown": round(memory() - before, 1),
                }
            )
        )


def _fast() -> str | None:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def outside(reader: str, cases: int, args: argparse.Namespace) -> dict[str, Any]:
    """Runs the process of a reader, anew behind a case that ends or stops it; returns the numbers."""
    total = Counter()
    slowest = grown = 0.0
    begin, end = args.begin, args.begin + cases
    with tempfile.NamedTemporaryFile(dir=_fast()) as at:
        while begin < end:
            command = [sys.executable, __file__, "--inside", "--at", at.name, "--reader", reader, "--seed", args.seed]
            command += ["--begin", begin, "--cases", end - begin, "--save", args.save]
            lines, crash = _watched([str(word) for word in command], Path(at.name))
            for line in lines:
                facts = json.loads(line)
                if "failure" in facts:
                    print(line, flush=True)
                else:
                    slowest, grown = max(slowest, facts.pop("slowest")), max(grown, facts.pop("grown"))
                    total += Counter(facts)
            if not crash:
                break
            at.seek(0)
            if not (said := at.read()):
                raise RuntimeError(f"{reader}: the process ended before its first case: {crash}")
            stopped = int(said)
            print(json.dumps({"reader": reader, "case": stopped, "failure": crash}), flush=True)
            total += Counter(cases=stopped + 1 - begin, failures=1)
            begin = stopped + 1
    numbers = {name: total[name] for name in ("cases", "refused", "accepted", "failures", "seconds")}
    return {"reader": reader, **numbers, "slowest": slowest, "grown": grown}


def _watched(command: list[str], at: Path) -> tuple[list[str], str]:
    """The lines of a process, and how it ended where it did not end well."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "RUST_BACKTRACE": "0"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as noise:
        process = subprocess.Popen(command, stdout=out, stderr=noise, text=True, env=environment)
        last, since, crash = b"", time.monotonic(), ""
        while process.poll() is None:
            time.sleep(0.05)
            if (now := at.read_bytes()) != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE * (1 if last else 10):  # it also has to start
                process.kill()
                crash = f"no end within {PATIENCE} s"
        if process.wait() and not crash:
            noise.seek(0)
            crash = f"the process ended with {process.returncode}: {noise.read()[-500:]}"
        out.seek(0)
        return out.read().splitlines(), crash


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000, help="of all readers, or of --reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--begin", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="run this case alone, here")
    parser.add_argument("--debug", action="store_true", help="with --only: let the error through")
    parser.add_argument("--save", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--at", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.save = args.save.absolute()
    if args.inside:
        inside(args)
        return 0
    if args.only is not None:
        return only(args)
    chosen = [READERS[args.reader]] if args.reader else list(READERS.values())
    whole, failures = sum(reader.share for reader in chosen), 0
    for reader in chosen:
        facts = outside(reader.name, round(args.cases * reader.share / whole), args)
        failures += facts["failures"]
        print(json.dumps(facts), flush=True)
    return int(failures > 0)


def only(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(READERS[args.reader], args.seed, Path(folder))
        files = fuzz.files(args.only)
        for name, data in files.items():
            print(f"{name}: {data[:2000]!r}")
        if args.debug:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            fuzz.reader.read(Path(folder))
        fuzz.run(args.only)
        print(dict(fuzz.counts), [what for _, what, _ in fuzz.failures])
        return int(bool(fuzz.failures))


if __name__ == "__main__":
    sys.exit(main())
