"""Records found by their places are those of ArrayRecord's own reader."""

import random

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from pretrain.data.places import BLOCK, PLACE, Records, write_places
from pretrain.data.records import OPTIONS


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(file, its places, its records): of all sizes, some longer than a block."""
    folder, draw = tmp_path_factory.mktemp("places"), np.random.default_rng(0)
    sizes = [1, *draw.integers(1, 9000, 400), BLOCK - 90, BLOCK, 3 * BLOCK + 7, *draw.integers(1, 200, 900), 2]
    records = [draw.bytes(int(n)) for n in sizes]
    writer = ArrayRecordWriter(str(folder / "a.array_record"), OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    write_places(folder / "a.array_record", len(records), folder / "a.places")
    return folder / "a.array_record", folder / "a.places", records


def test_every_record_is_the_one_that_was_written(stored):
    path, places, records = stored
    read, theirs = Records(path, places), ArrayRecordReader(str(path))
    assert places.stat().st_size == PLACE.size * len(records)
    assert path.stat().st_size > 20 * BLOCK
    assert [read(i) for i in range(len(records))] == records == theirs.read_all()


def test_one_changed_bit_of_any_record_is_noticed(stored, tmp_path):
    path, places, records = stored
    rng = random.Random(0)
    for number in rng.sample(range(len(records)), 40):
        at, size, _ = PLACE.unpack_from(places.read_bytes(), PLACE.size * number)
        data = bytearray(path.read_bytes())
        while (byte := at + rng.randrange(size)) % BLOCK < 24:  # the header of a block is no record's
            continue
        data[byte] ^= 1 << rng.randrange(8)
        (tmp_path / "b").write_bytes(data)
        read = Records(tmp_path / "b", places)
        with pytest.raises(ValueError, match=f"record {number} is not what"):
            read(number)
        assert read(number - 1) == records[number - 1]


def test_a_file_that_was_cut_short_is_noticed(stored, tmp_path):
    path, places, records = stored
    (tmp_path / "b").write_bytes(path.read_bytes()[: 5 * BLOCK])
    read = Records(tmp_path / "b", places)
    assert read(0) == records[0]
    with pytest.raises(ValueError, match="is not what"):
        read(500)
    with pytest.raises(ValueError, match="records are missing"):
        write_places(tmp_path / "b", len(records), tmp_path / "c")
