"""A process that hangs ends, and the others say which one they waited for."""

import json
import signal
import time

import pytest
from etils import epath

from pretrain.health import hosts, watchdog
from tests.multidevice.test_processes import free_port
from tests.train import tiny


def beat(process: int, step: int, doing: str = "step", time: float = 100.0) -> dict:
    return {"process": process, "host": "h", "pid": 7, "step": step, "doing": doing, "time": time}


def test_who_is_silent_behind_or_elsewhere_is_named():
    beats = [beat(0, 9), beat(1, 9), beat(2, 8), beat(3, 9, "data"), beat(4, 9, time=50.0)]
    told = watchdog.lagging(beats, tick=5.0, now=101.0)
    assert [line.split()[1] for line in told] == ["2", "3", "4"]
    assert "silent for 51 s" in told[2]


def test_processes_slower_than_most_are_named_and_noise_is_not():
    def row(own: float) -> dict:
        return {"step_seconds": 1.0, "own_seconds": own, "data_wait_seconds": 0.0}

    assert hosts.slow([row(0.1), row(0.1), row(0.13), row(0.1)]) == [2]
    assert hosts.slow([row(0.001), row(0.001), row(0.002)]) == []
    assert hosts.slow([row(0.5)]) == []


@pytest.mark.slow
def test_a_stopped_process_is_named_by_the_other_which_ends_with_75(corpus, tmp_path):
    run, address = tmp_path / "run", f"coordinator=127.0.0.1:{free_port()}"
    more = ("steps=2000", "simulate=2", "hang=20", address, "count=2")
    pair = [tiny.start(corpus, run, *more, f"process={index}") for index in range(2)]
    try:
        deadline = time.time() + 300
        while time.time() < deadline and not any(line["step"] >= 5 for line in tiny.lines(run)):
            assert all(p.poll() is None for p in pair), pair[0].communicate()[0]
            time.sleep(0.1)
        pair[1].send_signal(signal.SIGSTOP)
        output, _ = pair[0].communicate(timeout=200)
        assert pair[0].returncode == watchdog.HUNG, output
    finally:
        for process in pair:
            process.kill()
    stacks = next((run / "stacks").glob("0-step-*.txt")).read_text()
    assert "process 1 on" in stacks
    assert "pretrain/train.py" in stacks, "the stack says where it waits"
    hung = [json.loads(x) for x in (run / "events.jsonl").read_text().splitlines() if '"hung"' in x]
    assert hung[0]["process"] == 0
    assert hung[0]["behind"][0].startswith("process 1 on")
    assert len(watchdog.read(epath.Path(run))) == 2
