"""DeepSeek-V3 (DeepSeek-AI 2024b, arXiv:2412.19437, sections 3.3 and 4.2) on 512 chips of v5p, 16 of which share the
experts: 14.8 trillion tokens in batches of 63 million, each in 15 parts."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, RunConfig
from pretrain.configs.deepseek import v3
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.remat import FULL
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.config import WSD, AdamW, DecayFraction, OptimizerConfig
from pretrain.sharding.mesh import MeshConfig

ROWS, LENGTH = 15360, 4096
TOKENS, DECAYING = 14.8e12, 4.8e12
STEPS = int(TOKENS) // (ROWS * LENGTH)


def run() -> RunConfig:
    model = v3(ahead=1, factor=None)
    assert model.decoder is not None
    source = JsonLines(paths=("data/*.jsonl.zst",))
    moments = AdamW(first_dtype="bfloat16", second_dtype="bfloat16")
    decay = DecayFraction(fraction=DECAYING / TOKENS)
    return RunConfig(
        model=replace(model, decoder=replace(model.decoder, remat=FULL)),
        data=DataConfig(
            corpus=CorpusConfig(source=source, tokenizer=TrainSentencePiece(vocab_size=128000)),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(kind=moments, peak_lr=2.2e-4, schedule=WSD(warmup_steps=2000, decay=decay)),
        objective=NextToken(loss=LossConfig(chunk=512)),
        batch=BatchConfig(rows=ROWS, accumulate=15),
        mesh=MeshConfig(expert=16),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=100, keep_latest=3),
        evals=EvalConfig(every=100, batches=32),
    )
