"""A checkpoint proves itself before it is believed."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pretrain import opened, run
from pretrain.checkpoint import layout, manifest, reading
from pretrain.checkpoint.manager import Checkpoints
from pretrain.checkpoint.manifest import Progress
from pretrain.checkpoint.retention import kept
from pretrain.config import CheckpointConfig
from pretrain.errors import UserError
from pretrain.metrics.sinks import read_lines
from pretrain.models import tree
from pretrain.optimizer.config import Constant, Lion, OptimizerConfig
from tests.train import tiny

RNG = np.random.default_rng(0)
KERNEL = RNG.standard_normal((64, 48)).astype(np.float32)


def state(step: int) -> dict:
    return {
        "model": {"kernel": jnp.asarray(KERNEL + step), "scale": jnp.ones(48, jnp.bfloat16)},
        "step": jnp.int32(step),
    }


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Checkpoints 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("original") / "checkpoints"
    save(folder, 4, 8, 12, keep_latest=3)
    return folder


def save(folder: Path, *steps: int, **config) -> list:
    checkpoints = Checkpoints(epath.Path(folder), CheckpointConfig(**config), {"config": "c0ffee"})
    for step in steps:
        checkpoints.save(state(step), Progress(step=step, tokens=10 * step), None)
    checkpoints.close()
    return checkpoints.news()


def resume(folder: Path):
    checkpoints = Checkpoints(epath.Path(folder), CheckpointConfig())
    found = checkpoints.resume(state(0))
    checkpoints.close()
    return found, checkpoints.news()


def data_files(step: Path) -> list[Path]:
    return sorted((p for p in step.rglob("*") if p.is_file() and p.parent.name == "d"), key=lambda p: p.stat().st_size)


def flip(step: Path) -> None:
    path, rng = data_files(step)[-1], random.Random(step.name)
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(step: Path) -> None:
    path = data_files(step)[-1]
    path.write_bytes(path.read_bytes()[:-100])


def empty(step: Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def edit_manifest(step: Path) -> None:
    path = step / manifest.NAME
    path.write_text(path.read_text().replace("float32", "int32"))


def another_type(step: Path) -> None:
    """As a save of the same names with another type leaves it, under the manifest of this one."""
    other = step.parent / "other"
    checkpoints = Checkpoints(epath.Path(other), CheckpointConfig())
    wrong = state(12)
    wrong["model"]["kernel"] = wrong["model"]["kernel"].astype(jnp.int32)
    checkpoints.save(wrong, Progress(step=12, tokens=120), None)
    checkpoints.close()
    text = (step / manifest.NAME).read_text()
    shutil.rmtree(step)
    (other / "12").rename(step)
    facts = manifest.read(epath.Path(step))
    (step / manifest.NAME).write_text(text)
    honest = manifest.read(epath.Path(step))
    (step / manifest.NAME).write_text(
        manifest.Manifest(**{**vars(honest), "files": facts.files}).text()  # the files are those that are there
    )
    shutil.rmtree(other)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "one bit of an array": flip,
    "a truncated file": truncate,
    "a missing file": lambda step: data_files(step)[-1].unlink(),
    "a missing manifest": lambda step: (step / manifest.NAME).unlink(),
    "a torn manifest": lambda step: (step / manifest.NAME).write_text("{"),
    "an edited manifest": edit_manifest,
    "an empty directory": empty,
    "another type": another_type,
    "the files of another step": lambda step: shutil.rmtree(step) or shutil.copytree(step.parent / "8", step),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_resume_falls_back_from_damage_and_sets_it_aside(kind, original, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(original, folder)
    DAMAGE[kind](folder / "12")
    assert reading.verify(epath.Path(folder / "12"))
    found, news = resume(folder)
    assert found is not None
    assert found[1] == Progress(step=8, tokens=80)
    np.testing.assert_array_equal(found[0]["model"]["kernel"], KERNEL + 8)
    assert [(kind, facts["step"]) for kind, facts in news] == [("damaged", 12)]
    assert not (folder / "12").exists()
    assert (folder / "damaged" / "12").exists(), "set aside, not deleted"
    assert resume(folder)[1] == [], "it does not come up again"


def test_a_flipped_bit_is_named_with_its_array_or_lies_where_no_array_does(original, tmp_path):
    rng, found = random.Random(1), 0
    files = sorted(p.relative_to(original / "12") for p in data_files(original / "12"))
    for trial, file in enumerate(files * 3):
        step = tmp_path / "12"
        shutil.copytree(original / "12", step)
        path = step / file
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        problems = reading.verify(epath.Path(step))
        named = [line for line in problems for name in ("model/kernel", "model/scale", "step") if f": {name}" in line]
        assert len(named) == len(problems), trial
        found += bool(problems)
        if not problems:
            model = reading.read_part(epath.Path(step), {"model": state(12)["model"]})["model"]
            np.testing.assert_array_equal(model["kernel"], KERNEL + 12)
        shutil.rmtree(step)
    assert found, "the bytes of arrays are among them; some files only hold what Orbax merged"


def test_damage_everywhere_is_an_error_now_and_the_next_time(original, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(original, folder)
    for step in (4, 8, 12):
        flip(folder / str(step))
    for _ in range(2):
        with pytest.raises(UserError, match="no checkpoint that is whole"):
            resume(folder)
    shutil.rmtree(folder / "damaged")
    assert resume(folder)[0] is None


def test_a_folder_that_no_save_ever_finished_is_no_reason_to_refuse(tmp_path):
    (tmp_path / "checkpoints" / "9").mkdir(parents=True)
    found, news = resume(tmp_path / "checkpoints")
    assert found is None
    assert [facts["step"] for _, facts in news] == [9]


def test_a_part_that_is_read_is_proven_too(original, tmp_path):
    shutil.copytree(original / "12", tmp_path / "12")
    wanted = {"model": state(12)["model"]}
    assert reading.read_part(epath.Path(tmp_path / "12"), wanted)["model"]["kernel"][0, 0] == KERNEL[0, 0] + 12
    flip(tmp_path / "12")
    with pytest.raises(UserError, match="checkpoint 12 is damaged"):
        reading.read_part(epath.Path(tmp_path / "12"), wanted)


def test_leftovers_of_interrupted_saves_and_removals_go(original, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(original, folder)
    shutil.copytree(folder / "8", folder / "deleted" / "4.1")
    shutil.copytree(folder / "8", folder / "16.orbax-checkpoint-tmp")
    found, news = resume(folder)
    assert (found and found[1].step, news) == (12, [])
    assert sorted(p.name for p in folder.iterdir()) == ["12", "4", "8"]


def test_the_latest_the_best_and_every_so_many_th_stay():
    losses = {1: 3.0, 2: None, 3: 1.0, 4: None, 5: 2.0, 6: 1.0, 7: 5.0}
    assert kept(losses, CheckpointConfig(keep_latest=1, keep_best=0)) == {7}
    assert kept(losses, CheckpointConfig(keep_latest=2, keep_best=2)) == {6, 7, 3}
    assert kept(losses, CheckpointConfig(keep_latest=1, keep_best=0, keep_every=2)) == {2, 4, 6, 7}


@pytest.fixture
def full_disk(tmp_path):
    """A folder with room for one checkpoint of `state`, and a way to make more."""
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=9m", str(folder)], check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_leaves_nothing_behind_and_the_next_save_goes_on(full_disk):
    folder, make_room = full_disk
    checkpoints = Checkpoints(epath.Path(folder / "checkpoints"), CheckpointConfig(keep_latest=9))
    for step in (1, 2, 3):
        random_state = {"x": jnp.asarray(RNG.standard_normal(16_000), jnp.float32)}
        checkpoints.save(random_state, Progress(step=step, tokens=0), None)
        checkpoints.wait()
    failed = [(kind, facts["step"]) for kind, facts in checkpoints.news() if kind == "save_failed"]
    assert failed == [("save_failed", 2), ("save_failed", 3)]
    assert checkpoints.saved is None
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["1"], "no temporary directory keeps the room"
    make_room()
    checkpoints.save({"x": jnp.ones(16_000)}, Progress(step=4, tokens=0), None)
    checkpoints.close()
    assert manifest.latest(epath.Path(folder / "checkpoints")) == 4


def test_a_failed_save_stops_the_run_where_the_config_says_so(full_disk):
    folder, _ = full_disk
    checkpoints = Checkpoints(epath.Path(folder / "checkpoints"), CheckpointConfig(on_failure="stop"))
    checkpoints.save({"x": jnp.asarray(RNG.standard_normal(90_000), jnp.float32)}, Progress(step=1, tokens=0), None)
    with pytest.raises(UserError, match="checkpoint 1 could not be saved"):
        checkpoints.wait()


def test_a_damaged_run_goes_on_as_if_undisturbed_and_its_checkpoints_say_what_they_came_from(train, tmp_path, capfd):
    optimizer = OptimizerConfig(peak_lr=1e-2, schedule=Constant(warmup_steps=2))
    config = {"optimizer": optimizer, "checkpoint": CheckpointConfig(every=4, keep_latest=3, on_failure="continue")}
    train(tmp_path / "run", steps=8, **config)
    flip(tmp_path / "run" / "checkpoints" / "8")
    train(tmp_path / "run", steps=10, allow=("steps",), **config)
    lines, events = tiny.lines(tmp_path / "run"), read_lines(epath.Path(tmp_path / "run" / "events.jsonl"))
    assert [line["step"] for line in lines] == [*range(1, 9), *range(5, 11)]
    losses = {line["step"]: line["loss"] for line in lines[:8]}
    assert [line["loss"] for line in lines[8:12]] == [losses[step] for step in range(5, 9)], "bit for bit"
    assert [e["step"] for e in events if e["kind"] == "damaged"] == [8]
    assert "checkpoint 8 is damaged" in capfd.readouterr().err
    made = manifest.read(epath.Path(tmp_path / "run" / "checkpoints" / "10"))
    parent = manifest.read(epath.Path(tmp_path / "run" / "checkpoints" / "4"))
    assert parent.origin["parent"] is None
    assert made.origin["parent"] == {"run": str(tmp_path / "run"), "step": 4, "digest": parent.digest}
    stored = run.read_config(epath.Path(tmp_path / "run"))
    assert made.origin["config"] == run.origin(stored)["config"] != parent.origin["config"]
    # By the clock too, and parameters alone into a run with another optimizer and more layers.
    other = OptimizerConfig(peak_lr=1e-12, schedule=Constant(warmup_steps=0), kind=Lion())
    often = CheckpointConfig(every=1000, every_minutes=1e-9, keep_latest=9)
    model, source = (
        tiny.llama(vocab_size=400, d_model=32, layers=3, heads=4, kv_heads=2, d_ff=64),
        str(tmp_path / "run"),
    )
    grown = {"model": model, "start_from": source, "start_layers": (1, 0, -1)}
    train(tmp_path / "other", steps=3, optimizer=other, checkpoint=often, **grown)
    before, after = (layout.flatten(opened.open_run(tmp_path / name).model) for name in ("run", "other"))
    for name, array in after.items():
        copied, there = (array[:2], before[name][::-1]) if "pattern" in name else (array, before[name])
        np.testing.assert_allclose(copied, there, rtol=1e-5, atol=1e-7, err_msg=name)
    assert {p.name for p in (tmp_path / "other" / "checkpoints").iterdir()} == {"1", "2", "3"}
    began = manifest.read(epath.Path(tmp_path / "other" / "checkpoints" / "1")).origin["parent"]
    assert began == {"run": str(tmp_path / "run"), "step": 10, "digest": made.digest}
    assert opened.open_run(tmp_path / "run").step == 10


def test_layers_are_copied_as_the_mapping_says_and_others_keep_what_they_began_with(monkeypatch):
    def filled(layers: int, value: float):
        config = tiny.llama(vocab_size=40, d_model=8, layers=layers, heads=2, kv_heads=1, d_ff=16)
        shapes = tree.abstract(config, jnp.float32)
        return jax.tree.map(
            lambda s: jnp.broadcast_to(jnp.arange(s.shape[0]).reshape(-1, *[1] * (s.ndim - 1)) + value, s.shape), shapes
        )

    source, model = filled(2, 10.0), filled(3, 50.0)
    found = SimpleNamespace(model=source, config=None)
    monkeypatch.setattr(opened, "open_run", lambda path: found)
    grown, parent = opened.with_parameters(model, "there", (1, -1, 0))
    assert parent == {"run": "there", "step": None, "digest": None}
    before, began, after = map(layout.flatten, (source, model, grown))
    assert any("pattern" in name for name in after)
    for name, array in after.items():
        parts = (before[name][1], began[name][1], before[name][0])
        np.testing.assert_array_equal(array, np.stack(parts) if "pattern" in name else before[name], err_msg=name)
    with pytest.raises(UserError, match=r"found 2, expected -1 to 1, the layers of there"):
        opened.with_parameters(model, "there", (0, 1, 2))
