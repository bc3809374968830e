import json
import sys
from importlib import metadata
from pathlib import Path

import pytest
from etils import epath
from packaging.requirements import Requirement

from pretrain import doctor
from pretrain.checkpoint import manifest
from pretrain.checkpoint.manifest import Progress
from pretrain.configs.runs.smoke import run as smoke
from pretrain.doctor import Finding, environment, examine
from pretrain.serial import encode


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def metrics(*steps, **changed):
    return [{"step": s, "loss": 5.0 - s / 100, "batch_hash": f"{s:x}", **changed} for s in steps]


def checkpoint(run, step, arrays=("model/embed", "step")):
    folder = run / "checkpoints" / str(step)
    (folder / "d").mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")
    (folder / "d" / "0123").write_text("x" * 1000)
    progress, described = Progress(step=step, tokens=step), {a: [[2], "float32", 7] for a in arrays}
    files = manifest.list_files(folder)
    facts = manifest.Manifest(progress=progress, arrays=described, files=files, loss=None, origin={})
    (folder / "manifest.json").write_text(facts.text())
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A good run, resumed once at step 20; its made-up checkpoints hold no real arrays, so those are believed."""
    problems = doctor._problems
    monkeypatch.setattr(doctor, "_problems", lambda step, arrays: problems(step, arrays=False))
    run = epath.Path(tmp_path / "run")
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": encode(smoke())}))
    write_lines(run / "metrics.jsonl", metrics(10, 20, 30, 30, 40))
    kinds = [("start", 0), ("checkpoint", 20), ("resume", 20), ("checkpoint", 40), ("done", 40)]
    write_lines(run / "events.jsonl", [{"time": 1.0, "kind": k, "step": s} for k, s in kinds])
    checkpoint(run, 20)
    checkpoint(run, 40)
    return run


def wrong(run, severity="error"):
    return [f"{f.where}: {f.what}" for f in examine(run) if f.severity == severity]


def test_a_good_run_has_nothing_wrong(run):
    findings = examine(run)
    assert {f.severity for f in findings} == {"ok"}
    assert [f.where for f in findings] == [
        "run.json",
        "metrics.jsonl",
        "metrics.jsonl",
        "events.jsonl",
        "checkpoints/20",
        "checkpoints/40",
        "disk",
    ]


def test_every_finding_that_is_not_ok_says_what_to_do(tmp_path):
    findings = examine(epath.Path(tmp_path)) + examine(epath.Path(tmp_path / "nowhere"))
    assert len(findings) >= 5
    assert all(f.do for f in findings if f.severity != "ok")


def test_a_folder_that_is_not_there_is_one_error(tmp_path):
    assert [f.what for f in examine(epath.Path(tmp_path / "nowhere"))] == ["no such run directory"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (None, "run.json: is missing"),
        ('{"config": ', "run.json: cannot be read (JSONDecodeError)"),
        ("[]", "run.json: is not an object"),
        ("{}", "expected RunConfig"),
    ],
)
def test_a_run_json_that_cannot_be_used_is_an_error(run, text, what):
    (run / "run.json").unlink() if text is None else (run / "run.json").write_text(text)
    assert what in " ".join(wrong(run))


def test_every_bad_field_of_the_config_is_named(run):
    bad = {**encode(smoke()), "seed": -1, "steps": 0}
    (run / "run.json").write_text(json.dumps({"config": bad}))
    assert any("seed=-1" in line for line in wrong(run))
    assert any("steps=0" in line for line in wrong(run))


@pytest.mark.parametrize(("key", "value"), [("loss", 4.5), ("batch_hash", "ff"), ("loss", "nan")])
def test_a_repeated_step_that_differs_is_an_error_naming_the_step(run, key, value):
    write_lines(run / "metrics.jsonl", [*metrics(10, 20, 30), *metrics(30, **{key: value}), *metrics(40)])
    (line,) = wrong(run)
    assert line.startswith(f"metrics.jsonl: step 30 was repeated with another {key}: ")
    assert line.endswith(f"then {value}")


def test_of_many_steps_that_differ_the_first_is_named(run):
    write_lines(run / "metrics.jsonl", [*metrics(21, 22, 23, 24), *metrics(22, 23, 24, loss=1.0)])
    (line,) = wrong(run)
    assert "step 22 was repeated" in line
    assert "and 2 more steps" in line


def test_steps_that_go_back_without_a_resume_are_an_error(run):
    write_lines(run / "metrics.jsonl", metrics(10, 20, 30, 30, 40, 30, 40))
    assert wrong(run) == ["metrics.jsonl: goes from step 40 to 30 without a resume"]


def test_a_resume_does_not_excuse_steps_before_it(run):
    write_lines(run / "metrics.jsonl", metrics(10, 20, 30, 20, 30))
    assert wrong(run) == ["metrics.jsonl: goes from step 30 to 20 without a resume"]


def test_a_session_killed_before_its_first_checkpoint_may_start_anew(run):
    write_lines(run / "events.jsonl", [{"kind": "start", "step": 0}, {"kind": "start", "step": 0}])
    write_lines(run / "metrics.jsonl", metrics(1, 2, 3, 1, 2, 3, 4))
    assert wrong(run) == []


def test_a_torn_line_is_a_warning_with_its_number(run):
    with (run / "metrics.jsonl").open("a") as f:
        f.write('{"step": 5')
    assert wrong(run) == []
    assert wrong(run, "warning") == ["metrics.jsonl: torn at line 6"]


@pytest.mark.parametrize(("file", "key"), [("metrics.jsonl", "step"), ("events.jsonl", "kind")])
def test_lines_of_something_else_are_an_error(run, file, key):
    with (run / file).open("a") as f:
        f.write('{"something": "else"}\n')
    assert wrong(run) == [f"{file}: 1 lines have no {key}"]


def test_bytes_that_are_no_text_do_not_stop_the_doctor(run):
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00\n" * 3)
    (run / "events.jsonl").write_bytes(b"\x00" * 100)
    assert "metrics.jsonl: torn at line 1, 2, 3" in wrong(run, "warning")


def test_a_failed_run_says_why(run):
    write_lines(
        run / "events.jsonl", [{"kind": "failed", "step": 31, "reason": "loss nan"}, {"kind": "resume", "step": 20}]
    )
    assert wrong(run, "warning") == []
    write_lines(
        run / "events.jsonl", [{"kind": "resume", "step": 20}, {"kind": "failed", "step": 31, "reason": "loss nan"}]
    )
    assert wrong(run, "warning") == ["events.jsonl: the run failed at step 31: loss nan"]


def damage_manifest(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"float32"', '"float16"', 1))


DAMAGE = {
    "its manifest is not the one that was written": damage_manifest,
    "its manifest is no manifest (JSONDecodeError)": lambda folder: (folder / "manifest.json").write_text("{"),
    "its manifest is no manifest (KeyError)": lambda folder: (folder / "manifest.json").write_text("{}"),
    "its manifest cannot be read (FileNotFoundError)": lambda folder: folder.rmtree() or folder.mkdir(),
    "d/0123 has 10 bytes, 1000 were written": lambda folder: (folder / "d" / "0123").write_text("x" * 10),
    "d/0123 is missing": lambda folder: (folder / "d" / "0123").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_checkpoint_is_an_error_that_names_the_one_to_use(run, what):
    DAMAGE[what](run / "checkpoints" / "40")
    (found,) = [f for f in examine(run) if f.severity == "error"]
    assert (found.where, found.what) == ("checkpoints/40", what)
    assert found.do == "a resume uses 20 and sets this one aside"


def test_a_checkpoint_of_another_step_is_an_error(run):
    (run / "checkpoints" / "40").rename(run / "checkpoints" / "50")
    assert wrong(run) == ["checkpoints/50: its manifest is of step 40"]


def test_problems_of_arrays_are_reported_one_by_one(run, monkeypatch):
    bad = {"40": ["model/embed: checksum", "step: missing"]}
    monkeypatch.setattr(doctor, "_problems", lambda step, arrays: bad.get(step.name, []))
    assert wrong(run) == ["checkpoints/40: model/embed: checksum", "checkpoints/40: step: missing"]


def test_what_a_resume_set_aside_is_a_warning(run):
    (run / "checkpoints" / "damaged" / "30").mkdir(parents=True)
    (line,) = wrong(run, "warning")
    assert line.startswith("checkpoints/damaged/30: set aside")


@pytest.mark.parametrize("name", ["60.orbax-checkpoint-tmp", "60.orbax-checkpoint-tmp-1699", "deleted"])
def test_temporary_directories_are_warned_of_and_are_no_checkpoints(run, name):
    (run / "checkpoints" / name / "state").mkdir(parents=True)
    assert wrong(run) == []
    (line,) = wrong(run, "warning")
    assert line.startswith(f"checkpoints/{name}: a temporary directory")


def test_a_checkpoint_that_events_name_but_the_folder_lacks_is_a_warning(run):
    (run / "checkpoints" / "40").rmtree()
    assert wrong(run, "warning") == ["checkpoints: events.jsonl names 40, the newest here is 20"]


@pytest.mark.parametrize(("free", "severity"), [(900, "error"), (1500, "warning"), (10**9, "ok")])
def test_another_checkpoint_needs_room(run, monkeypatch, free, severity):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": free}))
    (found,) = [f for f in examine(run) if f.where == "disk"]
    assert found.severity == severity


def test_the_doctor_changes_nothing(run):
    def state():
        return {str(p): p.read_bytes() for p in Path(run).rglob("*") if p.is_file()}

    before = state()
    examine(run)
    assert state() == before


def test_examining_a_run_without_its_arrays_imports_no_jax(run, tmp_path):
    import subprocess

    code = (
        "import sys; from etils import epath; from pretrain.doctor import examine; "
        f"found = examine(epath.Path({str(run)!r}), arrays=False); print(len(found), 'jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["7", "False"]


def test_a_real_checkpoint_is_read_and_damage_is_found(tmp_path):
    import jax.numpy as jnp

    from pretrain.checkpoint.manager import Checkpoints
    from pretrain.config import CheckpointConfig

    run = epath.Path(tmp_path)
    checkpoints = Checkpoints(run / "checkpoints", CheckpointConfig())
    for step in (1, 2):
        state = {"model": {"kernel": jnp.full((64, 64), step, jnp.float32)}, "step": jnp.int32(step)}
        checkpoints.save(state, Progress(step=step, tokens=step), None)
        checkpoints.wait()
    checkpoints.close()
    assert [f.severity for f in examine(run) if f.where.startswith("checkpoints")] == ["ok", "ok"]
    for file in Path(run / "checkpoints" / "2").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[:10])
    found = [f for f in examine(run) if f.where.startswith("checkpoints")]
    assert {(f.where, f.severity) for f in found} == {("checkpoints/1", "ok"), ("checkpoints/2", "error")}
    assert {f.what.split(":")[0] for f in found} >= {"model/kernel", "step"}
    assert found[1].do == "a resume uses 1 and sets this one aside"


def test_this_machine_is_described():
    findings = environment()
    where = [f.where for f in findings]
    for part in ("python", "packages", "devices", "open files", "extra cuda", "extra test"):
        assert part in where
    assert not [f for f in findings if f.severity == "error"]


def test_a_missing_or_old_package_is_an_error():
    wanted = [Requirement("numpy>=999"), Requirement("no-such-package-here"), Requirement("jax")]
    found = {f.where: f for f in doctor._packages(wanted)}
    assert found["package numpy"] == Finding(
        severity="error",
        where="package numpy",
        what=f"found {metadata.version('numpy')}, expected >=999",
        do="install again: pip install -e . (or make a new .venv)",
    )
    assert found["package no-such-package-here"].what == "not installed"
    assert "package jax" not in found


def test_an_extra_that_is_not_installed_is_no_problem():
    (found,) = [
        f for f in doctor._packages([Requirement('no-such-package-here; extra == "gpu"')]) if f.where == "extra gpu"
    ]
    assert (found.severity, found.what) == ("ok", "no-such-package-here: not installed")
    assert "pretrain[gpu]" in found.do


def test_a_full_disk_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10**9}))
    (found,) = doctor._free_disk(tmp_path)
    assert (found.severity, found.what) == ("error", "1.0 GB free")


def test_few_open_files_are_a_warning(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1_048_576))
    (found,) = doctor._open_files()
    assert (found.severity, found.do) == ("warning", "ulimit -n 1048576")
