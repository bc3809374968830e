"""A run that comes back with fewer devices is the same run."""

import numpy as np
import pytest
from etils import epath

from pretrain.config import BatchConfig
from pretrain.elastic import adapted, device_rows
from pretrain.metrics.sinks import read_lines
from pretrain.sharding.mesh import MeshConfig
from tests.train import tiny


def given(rows: int, accumulate: int = 1, **mesh):
    return tiny.config("text", batch=BatchConfig(rows=rows, accumulate=accumulate), mesh=MeshConfig(**mesh))


@pytest.mark.parametrize(
    ("devices", "accumulate"), [(8, 1), (4, 1), (2, 2), (1, 4)]
)  # 32 rows that began as 8 on each of 4
def test_no_device_gets_more_rows_than_fitted(devices, accumulate):
    config, notes = adapted(given(32), 8, devices)
    assert config.batch == BatchConfig(rows=32, accumulate=accumulate)
    assert bool(notes) == (accumulate > 1)
    assert device_rows(config, devices) <= 8


@pytest.mark.parametrize(("mesh", "rows"), [({"fsdp": 2, "expert": 2}, 8), ({"stage": 2, "micro": 4}, 4)])
def test_every_axis_that_cuts_rows_counts(mesh, rows):
    assert device_rows(given(32, data=1, **mesh), 4 if "expert" in mesh else 2) == rows
    config, notes = adapted(given(32, data=-1, **mesh), 4, 4)
    assert config.batch.accumulate == (2 if rows > 4 else 1)
    assert len(notes) == config.batch.accumulate - 1


def test_the_first_start_and_a_batch_that_cannot_be_cut_stay_as_given():
    assert adapted(given(32), None, 1) == (given(32), [])
    assert adapted(given(30, fsdp=1, data=-1), 2, 4) == (given(30, fsdp=1, data=-1), [])


@pytest.mark.slow
def test_four_devices_then_two_then_four_give_the_losses_of_four(corpus, tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    tiny.finish(tiny.start(corpus, calm, "steps=12", "simulate=4"))
    for steps, devices in ((4, 4), (8, 2), (12, 4)):
        tiny.finish(tiny.start(corpus, run, f"steps={steps}", f"simulate={devices}"))
    a, b = tiny.lines(calm), tiny.lines(run)
    for key in ("step", "batch_hash", "tokens", "weight", "learning_rate"):
        assert [x[key] for x in a] == [x[key] for x in b], key
    np.testing.assert_allclose([x["loss"] for x in a], [x["loss"] for x in b], rtol=1e-5)
    told = [e["what"] for e in read_lines(epath.Path(run / "events.jsonl")) if e["kind"] == "changed"]
    note = "2 devices: batch.accumulate 1 -> 2, so that a device holds 2 rows as before; the global batch stays 8 rows"
    assert [what for what in told if "accumulate" in what] == [note]
