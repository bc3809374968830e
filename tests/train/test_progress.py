import io

import pytest

from pretrain.metrics.progress import Progress, count, duration, line, short_exponent
from pretrain.metrics.throughput import mfu, peak_flops

FACTS = {
    "step": 1240,
    "steps": 5000,
    "loss": 3.4118,
    "bits_per_byte": 1.274,
    "grad_norm": 0.812,
    "learning_rate": 3e-4,
    "tokens_per_second": 18243.7,
    "mfu": 0.4601,
    "data_wait_seconds": 0.003,
    "step_seconds": 1.0,
    "eta_seconds": 192.2,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_line_says_everything_known_in_one_order():
    assert line(FACTS) == (
        "step 1240/5000 25% loss 3.412 bpb 1.27 grad 0.81 lr 3.0e-4 18.2k tok/s mfu 46% data-wait 0.3% eta 3m12s"
    )


@pytest.mark.parametrize(
    ("unknown", "text"),
    [
        ("bits_per_byte", "bpb"),
        ("mfu", "mfu"),
        ("grad_norm", "grad"),
        ("data_wait_seconds", "data-wait"),
        ("tokens_per_second", "tok/s"),
        ("learning_rate", "lr"),
        ("loss", "loss"),
    ],
)
def test_what_is_unknown_is_left_out(unknown, text):
    assert text in line(FACTS)
    assert text not in line({k: v for k, v in FACTS.items() if k != unknown})
    assert text not in line({**FACTS, unknown: None})


def test_a_step_alone_is_a_line():
    assert line({"step": 7}) == "step 7"


def test_a_loss_that_is_not_finite_is_shown_as_such():
    assert "loss nan" in line({"step": 7, "loss": "nan"})
    assert "loss inf grad inf" in line({"step": 7, "loss": float("inf"), "grad_norm": "inf"})


def test_the_last_step_alone_is_100_percent():
    assert "99%" in line({"step": 4999, "steps": 5000})
    assert "100%" in line({"step": 5000, "steps": 5000})


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"),
        (950, "950"),
        (999.7, "1.00k"),
        (18243.7, "18.2k"),
        (626_000, "626k"),
        (1_250_000, "1.25M"),
        (6.74e9, "6.74B"),
    ],
)
def test_counts_have_three_digits_and_a_unit(n, text):
    assert count(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (192, "3m12s"), (7500, "2h05m"), (86400 * 3 + 3600 * 4, "3d04h")],
)
def test_durations_have_their_two_largest_units(seconds, text):
    assert duration(seconds) == text


def test_exponents_have_no_leading_zero():
    assert [short_exponent(x) for x in (3e-4, 0.0, 1.25e-12, 1.0)] == ["3.0e-4", "0.0e0", "1.2e-12", "1.0e0"]


def test_a_log_gets_plain_lines():
    log = io.StringIO()
    progress = Progress(100, 0, log)
    progress.note("resumed at step 40 [not markup]")
    progress.update({"step": 50, "loss": 2.0})
    progress.close()
    assert log.getvalue() == "resumed at step 40 [not markup]\nstep 50/100 50% loss 2.000\n"


def test_the_time_left_follows_the_pace_of_this_session():
    log, now = io.StringIO(), iter([100.0, 130.0])
    progress = Progress(100, 40, log, clock=lambda: next(now))
    progress.update({"step": 50})
    progress.update({"step": 60})
    assert log.getvalue().splitlines() == ["step 50/100 50%", "step 60/100 60% eta 2m00s"]


def test_a_terminal_gets_a_bar_that_ends_with_the_last_line(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    progress = Progress(100, 0, terminal)
    progress.update({"step": 50, "loss": 2.0})
    progress.note("saved step 50")
    progress.update({"step": 100, "loss": 1.5})
    progress.close()
    progress.close()
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    assert "saved step 50" in shown
    assert shown.rindex("step 100/100 100% loss 1.500") > shown.rindex("saved step 50")


@pytest.mark.parametrize(("process", "said"), [(0, "resumed\nstep 50/100 50% loss 2.000\n"), (1, "")])
def test_only_the_first_process_speaks_and_on_standard_error(process, said, monkeypatch, capsys):
    monkeypatch.setattr("jax.process_index", lambda: process)
    progress = Progress(100, 0)
    progress.note("resumed")
    progress.update({"step": 50, "loss": 2.0})
    progress.close()
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("device_kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
    ],
)
def test_every_known_chip_has_its_vendors_peak(device_kind, teraflops):
    assert peak_flops(device_kind) == teraflops * 1e12


@pytest.mark.parametrize("device_kind", ["cpu", "NVIDIA GeForce RTX 3090", "TPU v4 lite", ""])
def test_unknown_chips_have_no_peak_and_no_mfu(device_kind):
    assert peak_flops(device_kind) is None
    assert mfu(6e9, 1e6, 8, device_kind) is None


def test_mfu_is_the_share_of_all_devices_peak():
    # 128 v5p chips, 6 * 7e9 FLOPs a token: 58752 TFLOP/s at most, 29400 used
    assert mfu(42e9, 700_000, 128, "TPU v5p") == pytest.approx(29.4e15 / 58.752e15)
