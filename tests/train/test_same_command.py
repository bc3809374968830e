"""The same command again: on a finished run, after Ctrl-C, with more steps, after a start that failed."""

import signal
from pathlib import Path

import pytest
from etils import epath

from pretrain.checkpoint import manifest
from pretrain.errors import UserError
from pretrain.metrics.sinks import Recorder, read_lines
from pretrain.optimizer.config import Cosine, OptimizerConfig
from tests.train import tiny

COSINE = OptimizerConfig(peak_lr=1e-2, schedule=Cosine(warmup_steps=2))


def contents(run: Path) -> dict[Path, tuple[bytes, int]]:
    return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}


def events(run: Path) -> list[dict]:
    return read_lines(epath.Path(run) / "events.jsonl")


def test_a_finished_run_says_so_and_stays_as_it_is(train, tmp_path, capsys):
    ended = train(tmp_path / "run", steps=4)
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert train(tmp_path / "run", steps=4, log=tiny.LogConfig(every=2)) == ended
    assert contents(tmp_path / "run") == before
    said = f"{tmp_path}/run is finished, nothing is left to do; --steps N --allow steps trains on\n"
    assert capsys.readouterr().err == said


def test_more_steps_say_what_becomes_of_the_schedule_and_fewer_are_refused(train, tmp_path, capsys):
    run = tmp_path / "run"
    train(run, steps=4, optimizer=COSINE)
    capsys.readouterr()
    train(run, steps=8, optimizer=COSINE, allow=("steps",))
    rates = {line["step"]: line["learning_rate"] for line in tiny.lines(run)}
    assert rates[5] > 1.2 * rates[4]
    said = capsys.readouterr().err.splitlines()[:2]
    assert said == ["steps: 4 -> 8 (allowed)", "learning rate 5.5e-3 at step 4, 7.8e-3 at step 5"]
    assert (float(said[1].split()[2]), float(said[1].split()[6])) == pytest.approx((rates[4], rates[5]), rel=0.02)
    assert [e["what"] for e in events(run) if e["kind"] == "changed"] == said
    with pytest.raises(UserError) as error:
        train(run, steps=6, optimizer=COSINE, allow=("steps",))
    assert str(error.value) == (
        f"{run} is at step 8, expected at most steps=6; set steps to 8 or more, or use another --run"
    )


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(train, tmp_path, monkeypatch, capfd):
    run, metrics = tmp_path / "run", Recorder.metrics
    monkeypatch.setattr(signal, "default", signal.signal(signal.SIGINT, signal.default_int_handler), raising=False)

    def interrupted(self, line):
        metrics(self, line)
        if line["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "metrics", interrupted)
        facts = train(run, steps=8)
    assert facts["status"] == "interrupted"
    assert "\nCtrl-C: this step ends and is saved; again stops at once\n" in capfd.readouterr().err
    assert manifest.latest(epath.Path(run / "checkpoints")) == facts["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(run, steps=8)["status"] == "done"
    assert [line["step"] for line in tiny.lines(run)] == list(range(1, 9)), "no step was lost or repeated"
    assert [e["kind"] for e in events(run) if e["kind"] in ("start", "interrupted", "resume", "done")] == [
        *("start", "interrupted", "resume", "done")
    ]


def test_a_second_ctrl_c_stops_at_once(train, tmp_path, monkeypatch):
    monkeypatch.setattr(signal, "default", signal.signal(signal.SIGINT, signal.default_int_handler), raising=False)

    def interrupted(self, line):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", steps=8)
    assert manifest.latest(epath.Path(tmp_path / "run" / "checkpoints")) is None


def test_a_start_from_another_model_names_its_fields_and_leaves_no_run(train, tmp_path):
    train(tmp_path / "first", steps=1)
    model = tiny.llama(vocab_size=400, d_model=32, layers=1, heads=4, kv_heads=2, d_ff=48)
    with pytest.raises(UserError) as error:
        train(tmp_path / "second", steps=1, model=model, start_from=str(tmp_path / "first"))
    assert str(error.value) == (
        f"start_from={tmp_path}/first: found model.decoder.pattern.0.mlp.d_ff=64, model.decoder.repeats=2, "
        "expected 48, 1 as in this run; add --model.decoder.pattern.0.mlp.d-ff 64 --model.decoder.repeats 2"
    )
    assert not (tmp_path / "second").exists()
