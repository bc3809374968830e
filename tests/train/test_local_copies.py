"""Copies on the machines between checkpoints: newer than any, and believed only when they prove themselves."""

import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pretrain.checkpoint.manager import Checkpoints
from pretrain.checkpoint.manifest import Progress
from pretrain.config import CheckpointConfig
from pretrain.metrics.sinks import read_lines
from tests.multidevice.test_processes import free_port
from tests.train import tiny

KERNEL = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)


def state(step: int, **more) -> dict:
    return {"model": {"kernel": jnp.asarray(KERNEL + step), "scale": jnp.ones(48, jnp.bfloat16), **more}}


def opened(tmp_path: Path, run: str = "a") -> Checkpoints:
    config = CheckpointConfig(local=str(tmp_path / "memory"), local_every=2)
    return Checkpoints(epath.Path(tmp_path / run), config, {}, lambda: run)


@pytest.fixture
def killed(tmp_path) -> Path:
    """Checkpoint 4 and copies of 4, 6 and 8, of which two stay; nobody closed it."""
    checkpoints = opened(tmp_path)
    for step in (4, 6, 8):
        if step == 4:
            checkpoints.save(state(step), Progress(step=step, tokens=step << 40), None)
        checkpoints.keep(state(step), Progress(step=step, tokens=step << 40))
    checkpoints.wait()
    assert checkpoints._local is not None
    checkpoints._local._wait()
    return tmp_path


def resumed(tmp_path: Path, run: str = "a", **more):
    checkpoints = opened(tmp_path, run)
    found = checkpoints.resume(state(0, **more))
    return found, [(kind, facts["step"], facts.get("reason")) for kind, facts in checkpoints.news()]


def copies(tmp_path: Path) -> list[str]:
    return sorted(p.name for p in (tmp_path / "memory" / "a").iterdir())


def test_the_newest_copy_is_used_when_it_is_newer_than_the_checkpoints(killed):
    assert copies(killed) == ["6", "8"]
    (found, progress), news = resumed(killed)
    assert progress == Progress(step=8, tokens=8 << 40)
    assert news == [("local_used", 8, None)]
    np.testing.assert_array_equal(found["model"]["kernel"], KERNEL + 8)
    assert found["model"]["scale"].dtype == jnp.bfloat16


def test_what_lies_in_the_hosts_memory_comes_back_there(tmp_path):
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host")
    checkpoints = opened(tmp_path)
    checkpoints.keep(jax.device_put(state(8), sharding), Progress(step=8, tokens=0))
    assert checkpoints._local is not None
    checkpoints._local._wait()
    found = opened(tmp_path).resume(jax.device_put(state(0), sharding))
    assert found is not None
    kernel = found[0]["model"]["kernel"]
    assert kernel.sharding.memory_kind == "pinned_host"
    np.testing.assert_array_equal(kernel, KERNEL + 8)


def test_a_flipped_bit_in_a_copy_gives_the_one_before(killed):
    path = killed / "memory" / "a" / "8" / "0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    (found, progress), news = resumed(killed)
    assert progress.step == 6
    assert news == [("local_failed", 8, "model/kernel has other bits than were copied"), ("local_used", 6, None)]
    np.testing.assert_array_equal(found["model"]["kernel"], KERNEL + 6)


def test_torn_copies_give_the_checkpoint(killed):
    (killed / "memory" / "a" / "8" / "0.json").unlink()
    path = killed / "memory" / "a" / "6" / "0.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (found, progress), news = resumed(killed)
    assert progress.step == 4
    assert [kind for kind, _, _ in news] == ["local_failed", "local_failed"]
    np.testing.assert_array_equal(found["model"]["kernel"], KERNEL + 4)


def test_copies_of_another_run_or_model_are_left_alone(killed):
    assert resumed(killed, run="b") == (None, [])
    with pytest.raises(Exception, match="checkpoint 4"):
        resumed(killed, bias=jnp.ones(3))


def test_a_way_back_gives_up_later_copies_and_the_end_all(killed):
    checkpoints = opened(killed)
    checkpoints.drop_from(7)
    assert copies(killed) == ["6"]
    checkpoints.save(state(9), Progress(step=9, tokens=0), None)
    checkpoints.close()
    assert not list((killed / "memory").iterdir())


def wait_for(run: Path, step: int) -> None:
    for _ in range(6000):
        if (run / "metrics.jsonl").exists() and any(x["step"] >= step for x in tiny.lines(run)):
            return
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in {run}")


def events(run: Path, kind: str) -> list[dict]:
    return [e for e in read_lines(epath.Path(run) / "events.jsonl") if e["kind"] == kind]


def pair(corpus: Path, tmp_path: Path, run: Path, steps: int) -> list:
    address = f"coordinator=127.0.0.1:{free_port()}"
    words = (f"steps={steps}", "simulate=4", "data=2", "fsdp=2", address, "count=2")
    return [tiny.start(corpus, run, *words, f"process={i}", f"local={tmp_path}/m{i}") for i in range(2)]


def test_a_machine_that_came_back_empty_gets_its_parts_from_a_replica(corpus, tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    for process in pair(corpus, tmp_path, calm, 12):
        tiny.finish(process)
    killed = pair(corpus, tmp_path, run, 300)
    wait_for(run, 9)
    for process in killed:
        process.kill()
        process.communicate()
    newest = max(int(p.parent.name) for p in (tmp_path / "m0").glob("*/*/0.json"))
    assert newest >= 6
    shutil.rmtree(tmp_path / "m1")
    for process in pair(corpus, tmp_path, run, newest + 4):
        tiny.finish(process)
    assert [e["step"] for e in events(run, "local_used")] == [newest]
    usual = {line["step"]: (line["loss"], line["batch_hash"]) for line in tiny.lines(calm)}
    again = [line for line in tiny.lines(run) if line["step"] in usual]
    assert len(again) > 10
    assert all((line["loss"], line["batch_hash"]) == usual[line["step"]] for line in again)
