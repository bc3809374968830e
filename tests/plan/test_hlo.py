"""Reading a program: loops turn, fusions count once, collectives that are spread over fusions are one."""

import pytest

from pretrain.plan import hlo

PROGRAM = """HloModule jit_step, is_scheduled=true

%fused_matmul (p.0: bf16[128,256], p.1: bf16[256,512]) -> bf16[128,512] {
  %p.0 = bf16[128,256]{1,0} parameter(0)
  %p.1 = bf16[256,512]{1,0} parameter(1)
  ROOT %conv.1 = bf16[128,512]{1,0} convolution(%p.0, %p.1), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[128,256])) -> (s32[], bf16[128,256]) {
  %state = (s32[], /*index=1*/bf16[128,256]{1,0}) parameter(0)
  %x = bf16[128,256]{1,0} get-tuple-element(%state), index=1
  %w = bf16[64,512]{1,0} constant({...})
  %all-gather.1 = bf16[256,512]{1,0} all-gather(%w), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %fusion.1 = bf16[128,512]{1,0} fusion(%x, %all-gather.1), kind=kOutput, calls=%fused_matmul, m={f={
}}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  ROOT %out = (s32[], bf16[128,256]{1,0}) tuple(%x, %x)
}

%condition (state: (s32[], bf16[128,256])) -> pred[] {
  %state = (s32[], bf16[128,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %turns = s32[] constant(7)
  ROOT %lt = pred[] compare(%i, %turns), direction=LT
}

%async_collective_fusion.1 (p: f32[1024]) -> f32[4096] {
  %p = f32[1024]{0} parameter(0)
  %all-gather.2 = f32[4096]{0} all-gather(%p), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %start = f32[4096]{0} custom-call(%all-gather.2), custom_call_target="AsyncCollectiveStart"
}

%async_collective_done.1 (p: f32[1024]) -> f32[4096] {
  %p = f32[1024]{0} parameter(0)
  ROOT %all-gather.3 = f32[4096]{0} all-gather(%p), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

ENTRY %main (a: f32[1024]) -> f32[4096] {
  %a = f32[1024]{0} parameter(0)
  %t = (s32[], bf16[128,256]{1,0}) tuple(%a)
  %while.1 = (s32[], bf16[128,256]{1,0}) while(%t), condition=%condition, body=%body{known}
  %sum = f32[1024]{0} all-reduce(%a), channel_id=3, replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, to_apply=%add
  %never = f32[1024]{0} fusion(%a), kind=kLoop, calls=%x, backend_config={"estimated_cycles":"9223372036854775807"}
  %kernel = f32[8]{0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"flops":"500"}
  %s = f32[4096]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1
  ROOT %d = f32[4096]{0} fusion(%a), kind=kCustom, calls=%async_collective_done.1
}
"""
KNOWN = ', backend_config={"known_trip_count":{"n":"5"}}'


BRANCHES = """
%before (p: bf16[128,256]) -> bf16[128,512] {
  %p = bf16[128,256]{1,0} parameter(0)
  %w = bf16[256,512]{1,0} constant({...})
  ROOT %dot.1 = bf16[128,512]{1,0} dot(%p, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%behind (p: bf16[128,256]) -> bf16[128,512] {
  %p = bf16[128,256]{1,0} parameter(0)
  ROOT %nothing = bf16[128,512]{1,0} broadcast(%p), dimensions={0,1}
}

ENTRY %main (a: bf16[128,256], i: s32[]) -> bf16[128,512] {
  %a = bf16[128,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %one = bf16[128,512]{1,0} conditional(%i, %a, %a), branch_computations={%before, %behind}
}
"""


@pytest.mark.parametrize(
    "named", ["branch_computations={%before, %behind}", "true_computation=%before, false_computation=%behind"]
)
def test_branches_count_as_if_each_ran_as_often_as_the_others(named):
    program = BRANCHES.replace("branch_computations={%before, %behind}", named)
    assert hlo.read(program).flops == 2 * 128 * 256 * 512 / 2


@pytest.mark.parametrize(("known", "turns"), [("", 7), (KNOWN, 5)])
def test_a_body_counts_as_often_as_its_loop_turns(known, turns):
    program = hlo.read(PROGRAM.replace("{known}", known))
    assert program.cycles == 1000 * turns
    assert program.flops == 2 * 128 * 256 * 512 * turns
    assert program.endless == 0


def test_a_loop_without_a_bound_counts_once_and_is_told():
    program = hlo.read(PROGRAM.replace("{known}", "").replace("direction=LT", "direction=NE"))
    assert (program.cycles, program.endless) == (1000, 1)


def test_a_loop_that_an_even_load_does_not_enter_counts_as_nothing_and_is_told():
    text = PROGRAM.replace("{known}", ', metadata={op_name="jit(step)/jvp(seldom)/while" source_line=3}')
    program = hlo.read(text)
    assert (program.cycles, program.flops, program.endless, program.seldom) == (0, 0, 0, 1)


def test_collectives_by_kind_axis_and_whether_they_hide():
    found = {c.kind + "/" + ("hidden" if c.asynchronous else "waits"): c for c in hlo.read(PROGRAM).collectives}
    assert set(found) == {"all-gather/waits", "all-gather/hidden", "all-reduce/waits"}
    gather, hidden, reduce = found["all-gather/waits"], found["all-gather/hidden"], found["all-reduce/waits"]
    assert (gather.size, gather.count, gather.bytes) == (4, 7, 7 * 256 * 512 * 2 * 3 / 4)
    assert (hidden.count, hidden.bytes) == (1, 4096 * 4 * 3 / 4)
    assert (reduce.axes, reduce.size, reduce.bytes) == (("fsdp",), 4, 2 * 1024 * 4 * 3 / 4)


def test_collectives_of_a_shard_map_share_a_channel_and_are_several():
    line = "  %fusion.1 = bf16[128,512]"
    exchange = "  %exchange.{n} = bf16[2,{n},256]{{2,1,0}} all-to-all(%x), channel_id=1, replica_groups=[4,2]<=[8]\n"
    program = PROGRAM.replace(line, exchange.format(n=8) + exchange.format(n=64) + line)
    (found,) = [c for c in hlo.read(program).collectives if c.kind == "all-to-all"]
    assert (found.count, found.bytes) == (14, 2 * 7 * 128 * 256 * 2 / 2)


def test_a_kernel_says_its_own_flops():
    program = hlo.read(PROGRAM)
    assert (program.kernels, program.kernel_flops) == (1, 500)


@pytest.mark.parametrize(
    ("written", "axes", "size"),
    [
        ("replica_groups={{0,2},{1,3}}", (), 2),
        ("replica_groups=[16,4]<=[64]", (), 4),
        ("replica_groups=mesh['data'=2,'stage'=1,'fsdp'=4,'tensor'=8] {'fsdp','tensor'}", ("fsdp", "tensor"), 32),
        ("source_target_pairs={{0,1},{1,2},{2,0}}", (), 3),
    ],
)
def test_groups_are_read_however_they_are_written(written, axes, size):
    assert hlo.groups(f", channel_id=1, {written}, dimensions={{0}}") == (axes, size)


@pytest.mark.parametrize(
    ("written", "nodes"),
    [
        ("replica_groups={{0,1},{2,3}}", 1),
        ("replica_groups={{0,4},{1,5}}", 2),
        ("replica_groups=[2,4]<=[8]", 1),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", 1),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_1'}", 2),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 2),
        ("source_target_pairs={{0,1},{1,0}}", 1),
        ("source_target_pairs={{0,1},{3,4}}", 2),
    ],
)
def test_groups_know_the_nodes_they_are_spread_over(written, nodes):
    assert hlo.spread(f", channel_id=1, {written}, dimensions={{0}}", [0, 0, 0, 0, 1, 1, 1, 1]) == nodes
    assert hlo.spread(f", channel_id=1, {written}, dimensions={{0}}", []) == 1


@pytest.mark.parametrize(
    ("target", "mask", "window", "flops"),
    [
        ("fmhaSoftmax", "NO_MASK", 0, 4 * 2 * 3 * 64 * 64 * 16),
        ("fmhaScaleBiasSoftmax", "CAUSAL", 0, 4 * 2 * 3 * 64 * 32 * 16),
        ("fmhaSoftmax", "CAUSAL", 8, 4 * 2 * 3 * 64 * 8 * 16),
        ("fmhaSoftmaxBackward", "CAUSAL", 0, 10 * 2 * 3 * 64 * 32 * 16),
    ],
)
def test_the_attention_of_cudnn_is_counted_by_its_shapes_and_mask(target, mask, window, flops):
    shape = '"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "3", "64", "64"]}'
    said = f'{{{shape}, "mask_type": "{mask}", "sliding_window_length": {window}}}'
    call = f'%a = (bf16[2,3,64,16]) custom-call(%q), custom_call_target="__cudnn${target}", backend_config={said}'
    operation = hlo._operation(call)
    assert operation is not None
    assert hlo.kernel_flops(operation) == flops
    program = hlo.read(f"ENTRY %main (q: f32[8]) -> f32[8] {{\n  {call}\n}}\n")
    assert (program.kernels, program.kernel_flops) == (1, flops)


def test_padding_of_a_convolution_is_no_work():
    line = "%c = f32[4,8,16]{2,1,0} convolution(%a, %b), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f"
    operation = hlo._operation(line)
    assert operation is not None
    flops = hlo.product_flops(operation, {"a": "f32[4,8,32]", "b": "f32[3,32,16]"})
    assert flops == 2 * 4 * 16 * 32 * (3 * 8 - 2)
