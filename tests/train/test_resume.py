"""A run that was killed is the same run."""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from pretrain.checkpoint import manifest, reading
from tests.train import tiny

SAME = ("loss", "grad_norm", "weight", "tokens", "batch_hash", "learning_rate")


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory) -> dict[int, dict]:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    tiny.finish(tiny.start(corpus, run))
    return {line["step"]: line for line in tiny.lines(run)}


def wait_for_step(process, run: Path, step: int) -> None:
    deadline = time.time() + 240
    while process.poll() is None and time.time() < deadline:
        if any(line["step"] >= step for line in tiny.lines(run)):
            return
        time.sleep(0.02)


def assert_same(lines: list[dict], reference: dict[int, dict]) -> None:
    for line in lines:
        for key in SAME:
            assert line[key] == reference[line["step"]][key], (line["step"], key)


def test_killed_runs_repeat_every_loss_and_every_batch_bit_for_bit(corpus, tmp_path, undisturbed):
    run, rng, killed = tmp_path / "killed", random.Random(7), 0
    for _ in range(3):
        process = tiny.start(corpus, run)
        newest = max((line["step"] for line in tiny.lines(run)), default=0)
        wait_for_step(process, run, min(newest + rng.randint(3, 9), 29))
        killed += process.poll() is None
        process.kill()
        process.wait()
        latest = manifest.latest(epath.Path(run / "checkpoints"))
        assert latest is None or not reading.verify(epath.Path(run / "checkpoints" / str(latest)))
    tiny.finish(tiny.start(corpus, run))
    assert killed == 3
    assert {line["step"] for line in tiny.lines(run)} == set(range(1, 31))
    assert_same(tiny.lines(run), undisturbed)


def test_sigterm_saves_and_the_same_command_goes_on(corpus, tmp_path, undisturbed):
    run = tmp_path / "preempted"
    process = tiny.start(corpus, run)
    wait_for_step(process, run, 5)
    process.send_signal(signal.SIGTERM)
    assert '"preempted"' in tiny.finish(process)
    stopped = max(line["step"] for line in tiny.lines(run))
    assert manifest.latest(epath.Path(run / "checkpoints")) == stopped
    tiny.finish(tiny.start(corpus, run))
    assert [line["step"] for line in tiny.lines(run)] == list(range(1, 31)), "no step was lost or repeated"
    assert_same(tiny.lines(run), undisturbed)


def test_an_empty_folder_with_a_large_number_is_no_checkpoint(corpus, tmp_path, undisturbed):
    run = tmp_path / "confused"
    tiny.finish(tiny.start(corpus, run, "steps=8"))
    (run / "checkpoints" / "9").mkdir()
    shutil.copytree(run / "checkpoints" / "8", run / "checkpoints" / "11")
    shutil.rmtree(run / "checkpoints" / "11" / "d")
    tiny.finish(tiny.start(corpus, run, "steps=12"))
    assert_same(tiny.lines(run), undisturbed)
    assert [line["step"] for line in tiny.lines(run)] == list(range(1, 13))


def test_a_few_faults_of_every_soak_leave_no_trace():
    command = [sys.executable, str(tiny.ROOT / "benchmarks" / "soak.py"), "--faults", "3", "--seed", "5"]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
