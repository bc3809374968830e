"""Two processes that train together are one run."""

import socket

import numpy as np

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
