import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.pack import pack
from pretrain.data.plan import Windows
from pretrain.data.records import Record, decode_record, encode_record
from pretrain.data.sources import read_document
from tests.data.stored import write_split


def unique_tokens(lengths: list[list[int]]) -> list[list[list[int]]]:
    counter = iter(range(1, 10**6))
    return [[[next(counter) for _ in range(n)] for n in shard] for shard in lengths]


def window(split, number, T):
    tokens, starts = np.zeros(T + 1, np.int32), np.zeros(T + 1, bool)
    return tokens, starts, split.fill(number * T, tokens, starts)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), max_size=8), min_size=1, max_size=4),
    record_tokens=st.integers(8, 40),
    T=st.integers(1, 45),
    dtype=st.sampled_from(["<u2", "<u4"]),
)
def test_windows_are_the_stream_whatever_the_records_and_shards(tmp_path_factory, lengths, record_tokens, T, dtype):
    shards = unique_tokens(lengths)
    split = write_split(tmp_path_factory.mktemp("s"), shards, record_tokens, dtype)
    stream = [t for shard in shards for document in shard for t in document]
    first = {document[0] for shard in shards for document in shard}
    last = {document[-1] for shard in shards for document in shard}
    assert split.tokens == len(stream)
    assert Windows(split.tokens, T).rows == -(-len(stream) // T)
    for number in range(Windows(split.tokens, T).rows):
        tokens, starts, n = window(split, number, T)
        expected = stream[number * T : number * T + T]
        assert tokens[:n].tolist() == expected
        assert not tokens[n + 1 :].any()
        row = {name: a[0] for name, a in pack(tokens[None], starts[None], np.array([n])).items()}
        check_row(row, expected, stream[number * T + n : number * T + n + 1], first, last)
        pieces = split.pieces(number * T, T)
        assert [p.length for p in pieces] == np.bincount(row["segments"])[1:].tolist()
        for p in pieces:
            document = shards[int(p.shard[-5:])][p.document]
            assert document[p.offset : p.offset + p.length] == expected[p.start : p.start + p.length]
            assert p.row == p.document


def check_row(row, expected, following, first, last):
    n, T = len(expected), len(row["tokens"])
    segment = position = 0
    for t, token in enumerate(expected):
        fresh = t == 0 or token in first
        segment, position = segment + fresh, 0 if fresh else position + 1
        assert (row["segments"][t], row["positions"][t]) == (segment, position)
        assert row["weights"][t] == (token not in last)
        successor = (expected + following)[t + 1] if token not in last else 0
        assert row["targets"][t] == successor
    for name in row:
        assert not row[name][n:].any()
        assert row[name].shape == (T,)


def test_a_row_by_hand():
    tokens = np.array([[5, 6, 7, 8, 9, 3]], np.int32)
    starts = np.array([[0, 0, 1, 0, 0, 1]], bool)  # the look-ahead token begins the next document
    row = {name: a[0].tolist() for name, a in pack(tokens, starts, np.array([5])).items()}
    assert row == {
        "tokens": [5, 6, 7, 8, 9],
        "targets": [6, 0, 8, 9, 0],
        "positions": [0, 1, 0, 1, 2],
        "segments": [1, 1, 2, 2, 2],
        "weights": [1.0, 0.0, 1.0, 1.0, 0.0],
    }


def test_packed_arrays_have_the_types_that_the_step_expects():
    batch = pack(np.zeros((2, 5), np.int32), np.zeros((2, 5), bool), np.array([4, 0]))
    assert {name: a.dtype.name for name, a in batch.items()} == {
        **dict.fromkeys(("tokens", "targets", "positions", "segments"), "int32"),
        "weights": "float32",
    }


def test_a_record_survives_storage_and_refuses_a_cut():
    record = Record(np.arange(9, dtype="<u2"), np.array([0, 3], "<u4"), 80, 7, 2)
    data = encode_record(record)
    again = decode_record(data)
    assert [list(a) if isinstance(a, np.ndarray) else a for a in again] == [list(range(9)), [0, 3], 80, 7, 2]
    with pytest.raises(ValueError, match="not a token record"):
        decode_record(data[:-1])


def test_the_pieces_of_a_window_lead_back_to_the_source_text(data, opened):
    train, _, tokenizer = opened
    for number in range(0, train.tokens // 50, 7):
        tokens, _, _ = window(train, number, 50)
        for piece in train.pieces(number * 50, 50):
            text = read_document(data.corpus.source, piece.file, piece.row).text
            expected = [*tokenizer.encode(text), tokenizer.eos][piece.offset : piece.offset + piece.length]
            assert tokens[piece.start : piece.start + piece.length].tolist() == expected
