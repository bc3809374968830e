"""A short form of `python benchmarks/fuzz.py`: no damage to a small file ends in anything but a value or lines."""

import pytest

from benchmarks.fuzz import READERS, Fuzz

CASES = {"folder": 20, "checkpoint": 20, "log": 20}


@pytest.mark.parametrize("name", READERS)
def test_no_damage_by_chance_ends_in_anything_but_a_value_or_lines(name, tmp_path):
    fuzz, cases = Fuzz(READERS[name], 7, tmp_path), CASES.get(name, 150)
    for number in range(cases):
        fuzz.run(number)
    assert [(number, what) for number, what, _ in fuzz.failures] == []
    assert fuzz.counts["refused"] + fuzz.counts["accepted"] == cases
