"""A schedule walked with a clock: what overlaps costs nothing, slices count as slices, loops turn."""

from dataclasses import replace

import pytest

from pretrain.plan import timeline
from pretrain.plan.analytic import EFFICIENCY
from pretrain.plan.chips import CHIPS

CHIP = replace(CHIPS["h100"], memory_bandwidth=1e6, link_bandwidth=1e3, slow_bandwidth=1e2, kind="H100")
FUSED = """
%taken (p: f32[10,250], i: s32[]) -> f32[250] {
  %p = f32[10,250]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,250]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,250}
  ROOT %b = f32[250]{0} bitcast(%slice)
}

%filled (p: f32[10,250], u: f32[1,250], i: s32[]) -> f32[10,250] {
  %p = f32[10,250]{1,0} parameter(0)
  %u = f32[1,250]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %d = f32[10,250]{1,0} dynamic-update-slice(%p, %u, %i, %i)
}

%added (a: f32[250], c: f32[250]) -> f32[250] {
  %a = f32[250]{0} parameter(0)
  %c = f32[250]{0} parameter(1)
  ROOT %s = f32[250]{0} add(%a, %c)
}

%product (a: bf16[1000,1000], c: bf16[1000,1000]) -> bf16[1000,1000] {
  %a = bf16[1000,1000]{1,0} parameter(0)
  %c = bf16[1000,1000]{1,0} parameter(1)
  ROOT %dot = bf16[1000,1000]{1,0} dot(%a, %c), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
ADD = "%add = f32[250]{0} fusion(%x, %x), kind=kLoop, calls=%added"
START = "%sum = f32[250]{0} all-reduce-start(%x), replica_groups=[4,2]<=[8], to_apply=%plus"
DONE = "%sum-done = f32[250]{0} all-reduce-done(%sum)"


def walk(*lines, body="", nodes=(0,) * 8, chip=CHIP):
    inside = "\n".join(f"  {line}" for line in ("%x = f32[250]{0} parameter(0)", *lines))
    entry = f"ENTRY %main (x: f32[250]) -> f32[250] {{\n{inside}\n}}\n"
    loop = f"\n%body (x: f32[250]) -> f32[250] {{\n  %x = f32[250]{{0}} parameter(0)\n  {body}\n}}\n\n"
    return timeline.read(FUSED + loop + entry, chip, list(nodes))


def test_an_operation_takes_its_traffic_or_its_arithmetic():
    assert walk(ADD).memory == pytest.approx(3 * 1000 / 1e6)
    fast = replace(CHIP, memory_bandwidth=1e15)
    product = "%p = bf16[1000,1000]{1,0} fusion(%m, %m), kind=kCustom, calls=%product"
    found = walk(product, chip=fast)
    assert (found.compute, found.memory) == (pytest.approx(2e9 / (fast.peak * EFFICIENCY)), 0)


def test_a_slice_of_an_array_counts_as_the_slice():
    taken = "%t = f32[250]{0} fusion(%p, %i), kind=kLoop, calls=%taken"
    filled = "%f = f32[10,250]{1,0} fusion(%p, %u, %i), kind=kLoop, calls=%filled"
    assert walk(taken).memory == pytest.approx((1000 + 4 + 1000) / 1e6)
    assert walk(filled).memory == pytest.approx((1000 + 4 + 1000) / 1e6)


def test_the_clock_waits_for_what_nothing_hides():
    wire = 2 * 1000 / 2 / 1e3
    alone, beside = walk(START, DONE), walk(START, ADD, DONE)
    assert (alone.waiting, alone.links) == (pytest.approx(wire), pytest.approx(wire))
    assert beside.waiting == pytest.approx(wire - 0.003)
    assert beside.total == pytest.approx(wire)
    slow = replace(CHIP, memory_bandwidth=1e3)
    assert walk(START, ADD, DONE, chip=slow).waiting == 0


def test_collectives_take_turns_on_the_links():
    other, done = START.replace("%sum", "%two"), DONE.replace("%sum", "%two")
    assert walk(START, other, DONE, done).waiting == pytest.approx(2.0)


def test_other_nodes_are_further_away():
    assert walk(START, DONE, nodes=(0, 1) * 4).links == pytest.approx(10.0)


def test_a_loop_turns_and_a_condition_takes_its_longest_branch():
    while_ = '%w = f32[250]{0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert walk(while_, body=ADD).memory == pytest.approx(7 * 0.003)
    branches = "%b = f32[250]{0} conditional(%x, %x), branch_computations={%body, %none}"
    assert walk(branches, body=ADD).memory == pytest.approx(0.003)
