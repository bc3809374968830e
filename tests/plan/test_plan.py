"""Plans by arithmetic, and one that is compiled."""

import importlib.util
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from pretrain import cli, presets
from pretrain.config import BatchConfig
from pretrain.configs.llama import llama
from pretrain.errors import UserError
from pretrain.models import accounting
from pretrain.plan import analytic, compiler, program, report
from pretrain.plan.chips import parse
from pretrain.plan.plan import plan, run_of, with_remat
from pretrain.plan.search import search
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import resolved
from pretrain.state import create, make_optimizer

RUNS = [name for name in presets.names() if name.startswith("runs.")]
BIG = {
    "runs.pretrain_gpt3_175b": "v5p-1024",
    "runs.pretrain_bert_large": "v5e-16",
    "runs.pretrain_llama3_405b": "v5p-4096",
    "runs.pretrain_mixtral_8x22b": "v5p-512",
    "runs.pretrain_deepseek_v3": "v5p-1024",
}
SMALL = ("runs.smoke", "runs.demo")


def run(name="runs.smoke"):
    return presets.load_run(name)


@pytest.mark.parametrize("name", ["runs.smoke", "runs.smoke_bert", "runs.smoke_t5", "runs.smoke_deepseek"])
@pytest.mark.parametrize(("mesh", "rules"), [((1, 8, 1), "fsdp"), ((2, 2, 2), "fsdp_tp"), ((8, 1, 1), "dp")])
def test_bytes_of_parameters_and_optimizer_are_those_of_a_run(name, mesh, rules):
    data, fsdp, tensor = mesh
    config = replace(run(name), mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor), rules=rules, simulate=None)
    real = meshes.build(config.mesh, jax.devices()[:8])
    optimizer = make_optimizer(config, jnp.dtype("float32"))
    with place.use(real, resolved(config.rules)):
        state = create(config, optimizer, jnp.dtype("float32"), real)

    def held(tree) -> int:
        first = real.devices.flat[0]
        return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == first)

    parts = analytic.stored(config, 8)
    assert parts["parameters"] == held(state.model)
    assert parts["optimizer"] == held(state.optimizer)


def test_every_large_parameter_is_cut_over_all_devices_at_rest():
    """DeepSeek's low-rank maps too. Only experts are cut over `expert`: there are 17 billion other parameters."""
    config = run("runs.pretrain_deepseek_v3")
    total, others = accounting.parameters(config.model).total, 17.5e9
    assert analytic.stored(config, 512)["parameters"] < 1.05 * 4 * (total + others * (config.mesh.expert - 1)) / 512


def test_a_plan_has_experts_where_they_are():
    config = run("runs.pretrain_mixtral_8x22b")
    alone = replace(config, mesh=replace(config.mesh, expert=1))
    shared, whole = (plan(c, parse("v5p-512"), quick=True) for c in (config, alone))
    assert shared["memory"]["gathered_bytes"] < 0.6 * whole["memory"]["gathered_bytes"]


@pytest.mark.parametrize("name", RUNS)
def test_a_quick_plan_of_every_run(name):
    on = parse(BIG.get(name, "v5p-8" if "smoke" in name or "demo" in name else "v5p-128"))
    config = run(name)
    found = plan(config, on, quick=True)
    low, likely, high = found["step_seconds"]
    assert 0 < low <= likely <= high
    assert 0 < found["mfu"] < 1
    assert found["fits"], report.lines(name, found)
    assert found["tokens_per_second"] == pytest.approx(found["tokens_per_step"] / likely)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_deeper_model_or_more_micro_batches_are_no_larger_program(accumulate):
    config = replace(run("runs.smoke"), simulate=None, mesh=MeshConfig(fsdp=8))
    mesh = meshes.build(config.mesh, jax.devices()[:8])

    def operations(layers: int, accumulate: int) -> int:
        model = replace(config.model, decoder=replace(config.model.stack, repeats=layers))
        batch = replace(config.batch, rows=8 * accumulate, accumulate=accumulate)
        return program.lower(replace(config, model=model, batch=batch), mesh)[0].as_text().count(" = ")

    shallow = operations(2, accumulate)
    assert operations(16, accumulate) == shallow
    if accumulate > 1:
        assert operations(2, 2 * accumulate) == shallow


def test_a_run_that_does_not_fit_says_by_how_much_and_what_would():
    config = replace(with_remat(run("runs.pretrain_llama2_7b"), "none"), batch=BatchConfig(rows=1024))
    on = parse("v5p-128")
    found = plan(config, on, quick=True)
    assert not found["fits"]
    assert len(found["changes"]) == 2
    for change in found["changes"]:
        other = presets.overrides(config, change["options"].split())
        assert plan(other, on, quick=True)["fits"], change
    told = "\n".join(report.lines("x", found))
    assert "does not fit" in told
    assert "too many" in told
    assert found["changes"][0]["options"] in told


def test_changes_of_a_compiled_plan_that_does_not_fit_are_compiled_too(monkeypatch):
    on, asked = parse("v5p-128"), []
    config = with_remat(run("runs.pretrain_llama2_7b"), "none")

    def compiled(config, on, options=None, save=None):
        asked.append(config)
        peak = (90 if len(asked) in (3, 4) else 120) * 2**30
        facts = {"causes": {"parameters": 2**30}, "compile_seconds": 1.0, "cached": False}
        if peak > on.chip.memory:
            return {**facts, "refused": {"peak": peak, "limit": on.chip.memory}}
        sizes = {"argument": 2**31, "temp": peak - 2**31, "output": 0, "alias": 0, "generated_code": 0, "host": 0}
        program = {"cycles": 7e9, "flops": 1e15, "kernels": 0, "kernel_flops": 0.0, "collectives": [], "endless": 0}
        return {**facts, "memory": {**sizes, "peak": peak}, "program": program}

    monkeypatch.setattr(compiler, "compiled", compiled)
    found = plan(config, on)
    assert not found["fits"]
    assert [c["peak_bytes"] for c in found["changes"]] == [90 * 2**30] * 2
    assert [presets.overrides(config, c["options"].split()) for c in found["changes"]] == asked[2:]
    assert len(asked) == 4, "the run, one change that is refused, two that fit"
    assert all(c["step_seconds"] == pytest.approx(4.0) for c in found["changes"])
    assert "fits, 90.0 GiB, 4.00 s a step (compiled)" in "\n".join(report.lines("x", found))


def test_the_clock_of_a_walked_schedule_is_the_plans_time(monkeypatch):
    on, asked = parse("h100:64"), []

    def compiled(config, on, options=None, save=None):
        asked.append(config)
        sizes = {"argument": 2**30, "output": 0, "alias": 0, "generated_code": 0, "host": 0}
        peak = (90 if len(asked) == 1 else 60) * 2**30
        counted = {"cycles": 0.0, "flops": 1e15, "kernels": 3, "kernel_flops": 1e14, "endless": 0}
        moved = {"kind": "all-gather", "axes": ["fsdp"], "size": 64, "asynchronous": True, "count": 2, "bytes": 1e9}
        seconds = {"compute": 4.0, "memory": 1.0, "waiting": 0.5, "links": 0.75}
        program = {**counted, "collectives": [{**moved, "nodes": 8}], "seconds": seconds}
        memory = {**sizes, "temp": peak - 2**30, "peak": peak}
        facts = {"causes": {"parameters": 2**30}, "compile_seconds": 1.0, "cached": False}
        return {**facts, "memory": memory, "program": program}

    monkeypatch.setattr(compiler, "compiled", compiled)
    found = plan(run("runs.pretrain_llama2_7b"), on)
    assert found["step_seconds"] == pytest.approx([5.0, 5.5, 6.325])
    assert found["limited_by"] == pytest.approx({"compute": 4 / 5.5, "network": 0.5 / 5.5, "memory": 1 / 5.5})
    assert not found["fits"], "more than the GPU has, whatever the compiler says"
    assert [c["basis"] for c in found["changes"]] == ["compiled"] * 2
    told = "\n".join(report.lines("x", found))
    assert "counts no cycles" in told
    assert "between 8 nodes, beside computation" in told


def test_arithmetic_knows_which_attention_a_gpu_takes():
    config, on = run("runs.pretrain_llama2_7b"), parse("h100:64")
    block = config.model.stack.pattern[0]

    def peak(**changes):
        mixer = replace(block.mixer, **changes)
        stack = replace(config.model.stack, pattern=(replace(block, mixer=mixer),))
        return plan(replace(config, model=replace(config.model, decoder=stack)), on, quick=True)["memory"]["peak_bytes"]

    scores = analytic.SCORES * 32 * 4 * 4096**2
    assert peak(softcap=30.0) - peak() == scores - analytic.BIAS * 4 * 4096**2
    assert peak(sinks=True) > peak() + 0.9 * scores


@pytest.mark.parametrize("remat", ["none", "save_dots", "save_qkv", "full"])
def test_what_is_computed_again_is_time_and_what_is_kept_is_memory(remat):
    config, on = run("runs.pretrain_llama2_7b"), parse("v5p-128")
    full, other = plan(with_remat(config, "full"), on, quick=True), plan(with_remat(config, remat), on, quick=True)
    assert other["flops"] <= full["flops"]
    assert other["memory"]["peak_bytes"] >= full["memory"]["peak_bytes"]
    assert other["model_flops"] == full["model_flops"]


def test_moments_on_the_host_leave_the_device_and_take_time():
    config, on = run("runs.pretrain_llama2_7b"), parse("v5p-128")
    here = plan(config, on, quick=True)
    there = plan(presets.overrides(config, ["--optimizer.offload"]), on, quick=True)
    moments = here["memory"]["optimizer_bytes"]
    assert there["memory"]["host_bytes"] == pytest.approx(moments, rel=1e-6)
    assert here["memory"]["peak_bytes"] - there["memory"]["peak_bytes"] == there["memory"]["host_bytes"]
    slower = there["step_seconds"][1] - here["step_seconds"][1]
    assert slower == pytest.approx(2 * there["memory"]["host_bytes"] / analytic.HOST_LINK)


def test_a_search_orders_legal_meshes_and_marks_the_best():
    rows = search(run("runs.pretrain_llama2_7b"), parse("v5p-128"), compiles=6, quick=True)
    order = [(not row["fits"], row["step_seconds"]) for row in rows]
    assert len(rows) == 6
    assert order == sorted(order)
    assert rows[0]["best"]
    assert len(report.table(rows)) == 7


def test_batches_have_the_arrays_of_the_objective():
    shapes = program.batch_shapes(run("runs.smoke_t5"))
    assert {"tokens", "encoder_tokens", "targets", "weights"} <= set(shapes)
    assert all(shape[0] == run("runs.smoke_t5").batch.rows for shape, _ in shapes.values())


def test_the_compilers_refusal_is_read():
    message = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory in memory space hbm. "
        "Used 16.03G of 15.75G hbm. Exceeded hbm capacity by 285.00M."
    )
    other = "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: program (16.03G) exceeds available HBM (15.75G)"
    wanted = {"peak": pytest.approx(16.03 * 2**30), "limit": pytest.approx(15.75 * 2**30)}
    assert program.refusal(message) == wanted
    assert program.refusal(other) == wanted
    assert program.refusal("INTERNAL: something else") is None


def test_a_plan_is_kept_until_something_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    monkeypatch.setattr(compiler, "require", lambda on: None)
    monkeypatch.setattr(compiler, "_run", lambda request, on: calls.append(request) or {"answer": len(calls)})
    config, on = run(), parse("v5e-4")
    assert compiler.cached(config, on) is None
    assert compiler.compiled(config, on) == {"answer": 1, "cached": False}
    assert compiler.compiled(config, on) == {"answer": 1, "cached": True}
    assert compiler.cached(config, on) == {"answer": 1, "cached": True}
    assert compiler.compiled(replace(config, steps=7), on) == {"answer": 2, "cached": False}
    assert compiler.compiled(config, parse("v5e-8")) == {"answer": 3, "cached": False}
    assert compiler.compiled(config, parse("h100:8")) == {"answer": 4, "cached": False}
    monkeypatch.setattr(compiler, "_version", lambda package: "another")
    assert compiler.compiled(config, parse("h100:8")) == {"answer": 5, "cached": False}


@pytest.mark.parametrize(
    ("on", "missing", "extra"), [("v5e-4", "libtpu", "tpu"), ("h100:8", ".*nvidia-cudnn-cu13", "cuda")]
)
def test_without_the_compiler_one_is_told_what_to_install(monkeypatch, on, missing, extra):
    monkeypatch.setattr(compiler, "_version", lambda package: None)
    said = rf"on={on}: found no {missing}, expected the compiler.*pip install 'pretrain\[{extra}\]', or add --quick"
    with pytest.raises(UserError, match=said):
        plan(run(), parse(on))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("llama.llama2_7b", "--on", "v5p-128"), "add --batch ROWS --sequence LENGTH"),
        (("runs.smoke", "--on", "v5e-4", "--batch", "8"), "use --batch.rows"),
        (("runs.smoke", "--on", "v5e-4", "--mesh.tensor", "3", "--quick"), "mesh"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, words, said):
    assert cli.main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_model_alone_is_planned_with_a_batch(capsys):
    words = ["bert.base", "--on", "v5e-16", "--batch", "64", "--sequence", "512", "--quick", "--json"]
    assert cli.main(["plan", *words]) == 0
    assert json.loads(capsys.readouterr().out)["fits"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs pip install 'pretrain[tpu]'")
def test_a_tiny_run_compiles_for_a_slice_and_arithmetic_agrees_about_its_arrays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = plan(run(), parse("v5e:2x2"), save=str(tmp_path / "step"))
    quick = plan(run(), parse("v5e:2x2"), quick=True)
    assert found["fits"]
    for cause in ("parameters_bytes", "optimizer_bytes", "batch_bytes"):
        assert found["memory"][cause] == quick["memory"][cause]
    assert found["cycles"] > 0
    assert found["loops_without_turns"] == 0
    assert found["flops"] >= found["model_flops"]
    assert any(c["kind"] == "all-gather" and c["axis"] == "fsdp" for c in found["collectives"])
    assert (tmp_path / "step").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs pip install 'pretrain[tpu]'")
@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(stage=2, expert=2),
        MeshConfig(context=2, expert=2),
        MeshConfig(expert=4),
        MeshConfig(expert=4, kernels="tokamax"),
    ],
)
def test_experts_compile_for_a_slice_and_only_rows_that_there_are_travel(tmp_path, monkeypatch, mesh):
    if mesh.kernels == "tokamax":
        pytest.importorskip("tokamax")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = replace(run("runs.smoke_mixtral"), mesh=mesh)
    found = plan(config, parse("v5e:2x4"))
    assert found["fits"]
    facts = compiler.cached(config, parse("v5e:2x4"))
    assert facts is not None
    assert facts["program"]["kernels"] >= 9 * len(config.model.stack.blocks), "three products of experts, each thrice"
    assert any(c["kind"] == "ragged-all-to-all" for c in found["collectives"])
    assert found["loops_without_turns"] == 0 < found["loops_not_entered"]
    counts = [c["bytes"] for c in found["collectives"] if c["kind"] == "all-to-all" and c["axis"] == "expert"]
    assert sum(counts) < 1e5, "only how many rows there are"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs pip install 'pretrain[tpu]'")
def test_more_devices_that_share_experts_take_no_more_memory(tmp_path, monkeypatch):
    """The worst case, in which all tokens go to one of them, has eight times as many as an even load."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = (replace(run("runs.smoke_mixtral"), mesh=MeshConfig(expert=n)) for n in (2, 8))
    two, eight = (plan(config, parse("v5e:2x4"))["memory"]["temporaries_bytes"] for config in runs)
    assert eight < 1.1 * two


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs pip install 'pretrain[tpu]'")
@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(context=4), MeshConfig(context=2, stage=2), MeshConfig(context=4, attention="ring")],
    ids=["gather", "gather in stages", "ring"],
)
def test_devices_that_share_a_row_compile_with_flash_attention(tmp_path, monkeypatch, mesh):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = llama(vocab_size=4096, d_model=512, layers=2, heads=8, kv_heads=4, d_ff=1024)
    config = with_remat(replace(run_of(model, 16, 8192), mesh=mesh), "full")
    plan(config, parse("v5e:2x4"))
    facts = compiler.cached(config, parse("v5e:2x4"))
    assert facts is not None
    assert facts["program"]["kernels"] >= 8, "two layers: forward, again, and backward in two kernels"
    assert facts["memory"]["temp"] < 2**30, "the scores of one layer are 4 GiB"


def in_8_bits(kind: str, name="runs.pretrain_llama2_7b"):
    config = run(name)
    return replace(config, model=replace(config.model, decoder=replace(config.model.decoder, matmul=kind)))


def quick(kind: str, on: str):
    return plan(in_8_bits(kind), parse(on), quick=True)


@pytest.mark.parametrize(
    ("kind", "on"), [("int8", "v5p-128"), ("int8", "v6e-256"), ("fp8", "tpu7x-128"), ("fp8", "h100:64")]
)
def test_products_in_8_bits_are_sooner_and_mfu_counts_them_as_bfloat16(kind, on):
    usual, found, forward = quick("float", on), quick(kind, on), quick(f"{kind}_forward", on)
    low, usually = found["step_seconds"][1], usual["step_seconds"][1]
    assert usually / 2 < low < forward["step_seconds"][1] < usually
    assert found["model_flops"] == usual["model_flops"]
    assert found["mfu"] == pytest.approx(usual["mfu"] * usually / low)
    assert not found["notes"]


@pytest.mark.parametrize(("kind", "on"), [("fp8", "v5p-128"), ("fp8_forward", "v6e-256"), ("int8", "tpu7x-128")])
def test_a_type_in_which_a_chip_is_no_faster_is_told(kind, on):
    usual, found = quick("float", on), quick(kind, on)
    assert found["step_seconds"][1] > usual["step_seconds"][1]
    assert any(f"matmul {kind}: " in line for line in report.lines("run", found))
    assert not usual["notes"]


def test_what_stays_in_float_is_not_counted_as_faster():
    """Attention's scores, the head, routers and experts."""
    dense, mixture = (
        analytic.work(in_8_bits("int8", n), 64, analytic.stored(in_8_bits("int8", n), 64))
        for n in ("runs.pretrain_llama2_7b", "runs.pretrain_mixtral_8x22b")
    )
    assert 0.8 < dense.narrow["int8"] / dense.flops < 0.95
    assert mixture.narrow["int8"] / mixture.flops < 0.3


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs pip install 'pretrain[cuda]'")
@pytest.mark.parametrize("mesh", [MeshConfig(tensor=2), MeshConfig(tensor=2, stage=2)])
def test_a_tiny_run_compiles_for_gpus_with_the_attention_of_cudnn(tmp_path, monkeypatch, mesh):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = replace(run(), mesh=mesh, rules="fsdp_tp")
    found, quick = plan(config, parse("h100:16")), plan(config, parse("h100:16"), quick=True)
    assert found["fits"]
    for cause in ("parameters_bytes", "optimizer_bytes", "batch_bytes"):
        assert found["memory"][cause] == quick["memory"][cause]
    assert found["loops_without_turns"] == 0
    assert found["step_seconds"][1] > 0
    assert {c["nodes"] for c in found["collectives"]} == {1, 2}, "heads within a node, weights over two"
    facts = compiler.cached(config, parse("h100:16"))
    assert facts is not None
    assert facts["program"]["kernels"] >= 2 * len(config.model.stack.blocks), "a layer forward and backward"
