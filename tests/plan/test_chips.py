"""Slices by the names that people type."""

import pytest

from pretrain.errors import UserError
from pretrain.plan.chips import CHIPS, GPUS, parse


@pytest.mark.parametrize(
    ("typed", "topology", "chips", "devices"),
    [
        ("v5p-128", "v5p:4x4x4", 64, 64),
        ("v5p:128", "v5p:4x4x8", 128, 128),
        ("v5p-1024", "v5p:8x8x8", 512, 512),
        ("v5litepod-16", "v5e:4x4", 16, 16),
        ("v6e-256", "v6e:16x16", 256, 256),
        ("v4-8", "v4:2x2x1", 4, 4),
        ("tpu7x-128", "tpu7x:4x4x4", 64, 128),
        ("h100:16", "h100:16", 16, 16),
    ],
)
def test_a_name_is_a_shape(typed, topology, chips, devices):
    found = parse(typed)
    assert (found.topology, found.chips, found.devices) == (topology, chips, devices)


def test_the_vendors_name_comes_back():
    for typed in ("v5p-128", "v5e-16", "v4-32", "tpu7x-128", "h200:64"):
        assert parse(typed).vendor == typed


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("v9-16", "with one of v4, v5e"),
        ("v5p", "write v5p-128"),
        ("v5p-100", "choose v5p-32, v5p-64, v5p-128"),
        ("v5e:4x4x4", "has 2; write v5e:4x8"),
        ("h100:2x8", "write h100:16"),
        ("v5e:0", "a size of 0"),
    ],
)
def test_what_is_no_slice_gets_the_choices(typed, said):
    with pytest.raises(UserError, match=said):
        parse(typed)


@pytest.mark.parametrize(("count", "shape"), [(4, "1x1x4"), (8, "1x1x8"), (64, "1x8x8"), (12, "1x3x4"), (7, "1x1x7")])
def test_gpus_stand_in_nodes(count, shape):
    described = parse(f"h100:{count}").described
    assert (described["platform"], described["topology"]) == ("cuda", shape)


def test_the_clock_makes_the_peak():
    """FLOP/s = cycles/s x 2 x multiply-adds of a cycle: 4 units of 128 x 128 a core, two cores as one device where the
    vendor counts cores, or 4 units of 256 x 256."""
    units = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2, "tpu7x": 4 * 256**2}
    for name, adds in units.items():
        chip = CHIPS[name]
        assert chip.clock is not None
        assert chip.clock * 2 * adds == pytest.approx(chip.peak, rel=0.01)


def test_the_compiler_is_told_the_numbers_of_the_gpu():
    for chip in GPUS:
        assert chip.gpu is not None
        told = parse(f"{chip.name}:8").described["target_config"]
        for said in (f"core_count: {chip.gpu.cores}\n", f"device_memory_size: {chip.gpu.memory}\n", chip.gpu.name):
            assert said in told
        assert chip.memory < chip.gpu.memory
        assert chip.kind in chip.gpu.name, "by which `train` and MFU know it"
