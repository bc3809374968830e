"""Every second of a run is in one row."""

import pytest

from pretrain.metrics.goodput import ROWS, goodput, table


def line(time: float, step: int, seconds: float = 2.0, waited: float = 0.5) -> dict:
    return {"time": time, "step": step, "step_seconds": seconds, "data_wait_seconds": waited}


EVENTS = [
    {"time": 10.0, "kind": "start", "step": 0, "began": 4.0},
    {"time": 15.0, "kind": "compiled", "seconds": 3.0},
    {"time": 31.0, "kind": "evaluation", "step": 6, "seconds": 3.0},
    {"time": 33.0, "kind": "checkpoint", "step": 6, "seconds": 2.0},
    {"time": 60.0, "kind": "resume", "step": 6, "began": 55.0},
    {"time": 62.0, "kind": "compiled", "seconds": 1.5},
    {"time": 72.0, "kind": "done", "step": 10},
]
METRICS = [line(19.0, 2), line(23.0, 4), line(27.0, 6), line(37.0, 8), line(66.0, 8), line(70.0, 10)]


def test_rows_add_up_to_the_time_from_the_first_start_to_the_last_sign():
    facts = goodput(METRICS, EVENTS)
    assert facts["wall"] == 72.0 - 4.0
    assert sum(facts["seconds"].values()) == pytest.approx(facts["wall"])
    assert facts["seconds"] == pytest.approx(
        {
            "productive": 10 * 1.5,
            "data_wait": 10 * 0.5,
            "start": 6.0 + 2.0 + 5.0 + 0.5,
            "compile": 4.5,
            "evaluation": 3.0,
            "checkpoint": 2.0,
            "lost": 4.0,
            "down": 55.0 - 37.0,
            "other": 68.0 - 65.0,
        }
    )
    assert (facts["sessions"], facts["steps_lost"]) == (2, 2)
    assert [row.split()[0] for row in table(facts)] == [*ROWS, "wall"]


def test_a_resume_inside_the_steps_of_a_line_loses_those_behind_it():
    resumed = [*EVENTS[:2], {"time": 60.0, "kind": "resume", "step": 3, "began": 55.0}]
    facts = goodput([line(19.0, 2), line(23.0, 4), line(70.0, 4)], resumed)
    assert facts["steps_lost"] == 1
    assert facts["seconds"]["lost"] == 2.0
    assert facts["seconds"]["productive"] == 4 * 1.5


def test_steps_of_a_rewind_are_lost_and_a_run_without_times_has_no_rows():
    rewound = [*EVENTS[:2], {"time": 24.0, "kind": "rewind", "step": 2}]
    assert goodput([line(19.0, 2), line(23.0, 4)], rewound)["steps_lost"] == 2
    assert goodput([{"step": 1, "step_seconds": 1.0}], [])["wall"] == 0
