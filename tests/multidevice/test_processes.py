"""Processes that train together are one run."""

import socket

import numpy as np
import pytest

from tests.train import tiny


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_give_the_batches_and_losses_of_one(corpus, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    tiny.finish(tiny.start(corpus, one, "steps=8", "simulate=2"))
    address = f"coordinator=127.0.0.1:{free_port()}"
    pair = [
        tiny.start(corpus, two, "steps=8", "simulate=2", address, "count=2", f"process={index}") for index in range(2)
    ]
    for process in pair:
        tiny.finish(process)
    a, b = tiny.lines(one), tiny.lines(two)
    assert [line["batch_hash"] for line in a] == [line["batch_hash"] for line in b]
    assert [line["step"] for line in b] == list(range(1, 9))
    np.testing.assert_allclose([x["loss"] for x in a], [x["loss"] for x in b], rtol=1e-5)


@pytest.mark.slow
def test_four_processes_with_stages_and_tensor_parallelism_give_the_batches_and_losses_of_one(corpus, tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    layout = ("steps=4", "simulate=8", "fsdp=2", "tensor=2", "stage=2", "rules=fsdp_tp")
    tiny.finish(tiny.start(corpus, one, *layout))
    address = f"coordinator=127.0.0.1:{free_port()}"
    together = [tiny.start(corpus, four, *layout, address, "count=4", f"process={index}") for index in range(4)]
    for process in together:
        tiny.finish(process)
    a, b = tiny.lines(one), tiny.lines(four)
    assert [line["batch_hash"] for line in a] == [line["batch_hash"] for line in b]
    np.testing.assert_allclose([x["loss"] for x in a], [x["loss"] for x in b], rtol=1e-5)
