"""Step times that others measured on real chips, beside the plan's.

Sources: AI-Hypercomputer/maxtext, `MaxText/configs/v5p/README.md` (TFLOP/s a chip of models of 32, 64 and 128 billion
parameters; batch, mesh and rematerialisation in `32b.sh`, `64b.sh` and `128b.sh` beside it) and
`docs/reference/models/tiering.md` (Llama 2 70B, 692 tokens a second and chip; batch and rematerialisation in
`MaxText/configs/v5p/llama2_70b.sh`). Rematerialisation there is "minimal", all products kept, and
"save_dot_except_mlpwi", all but the wide ones of the MLP; neither keeps what attention says.
"""

from dataclasses import dataclass, replace

import pytest

from pretrain.configs.llama import llama, llama2_70b
from pretrain.models import accounting
from pretrain.models.config import AttentionConfig, Remat, TransformerConfig
from pretrain.plan.chips import parse
from pretrain.plan.plan import plan, run_of
from pretrain.sharding.mesh import MeshConfig

MINIMAL = Remat(save=("query", "key", "value", "attention_out", "mlp_up", "mlp_gate", "mlp_down"))
NOT_WIDE = Remat(save=("query", "key", "value", "attention_out", "mlp_down"))


@dataclass(frozen=True, kw_only=True)
class Measured:
    model: TransformerConfig
    on: str
    rows: int
    """Of one chip."""
    length: int
    remat: Remat
    tensor: int = 1
    flops: float | None = None
    """Of one chip in a second, attention counted once where it is causal (`calculate_tflops_training_per_device`)."""
    tokens: float | None = None
    """Of one chip in a second."""

    def seconds(self) -> float:
        if self.tokens is not None:
            return self.rows * self.length / self.tokens
        assert self.flops is not None
        mixer = self.model.stack.pattern[0].mixer
        assert isinstance(mixer, AttentionConfig)
        mixed = mixer.heads * mixer.head_dim * self.model.stack.repeats * self.length
        work = 6 * self.rows * self.length * (accounting.parameters(self.model).total + mixed)
        return work / self.flops


def of_scale(*, heads: int, d_ff: int, layers: int) -> TransformerConfig:
    """`global_parameter_scale` of MaxText's `base.yml`."""
    return llama(vocab_size=32000, d_model=8192, layers=layers, heads=heads, head_dim=128, d_ff=d_ff)


MEASURED = {
    "32b": Measured(
        model=of_scale(heads=64, d_ff=28672, layers=32),
        on="v5p-128",
        rows=7,
        length=2048,
        tensor=4,
        remat=MINIMAL,
        flops=328e12,
    ),
    "64b": Measured(
        model=of_scale(heads=64, d_ff=28672, layers=64),
        on="v5p-128",
        rows=3,
        length=2048,
        tensor=4,
        remat=MINIMAL,
        flops=323e12,
    ),
    "128b": Measured(
        model=of_scale(heads=128, d_ff=57344, layers=64),
        on="v5p-256",
        rows=1,
        length=2048,
        tensor=8,
        remat=MINIMAL,
        flops=315e12,
    ),
    "llama2_70b": Measured(model=llama2_70b(), on="v5p-512", rows=4, length=4096, remat=NOT_WIDE, tokens=692),
}


@pytest.mark.parametrize("name", MEASURED)
def test_a_plans_step_takes_as_long_as_a_real_one(name):
    """Within 15%."""
    measured = MEASURED[name]
    on = parse(measured.on)
    config = run_of(measured.model, measured.rows * on.chips, measured.length)
    model = replace(measured.model, decoder=replace(measured.model.stack, remat=measured.remat))
    mesh = MeshConfig(tensor=measured.tensor)
    config = replace(config, model=model, mesh=mesh, rules="fsdp_tp" if measured.tensor > 1 else "fsdp")
    planned = plan(config, on, quick=True)["step_seconds"][1]
    print(f"{name}: planned {planned:.2f} s, measured {measured.seconds():.2f} s, {planned / measured.seconds():.3f}")
    assert planned == pytest.approx(measured.seconds(), rel=0.15)
