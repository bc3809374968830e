import pytest

from tests.data.stored import write_split
from tests.objectives.zoo import documents


@pytest.fixture(scope="session")
def split(tmp_path_factory):
    """Three shards of forty documents."""
    return write_split(tmp_path_factory.mktemp("split"), [documents(40, seed) for seed in range(3)], 64)
