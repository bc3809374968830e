"""T5 11B (Raffel et al. 2020, section 3.7) on 64 chips of v5p: a million batches of 2048 rows of 512 tokens."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, RunConfig
from pretrain.configs.t5 import t5_11b
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.remat import FULL
from pretrain.objectives.config import SpanCorruption
from pretrain.optimizer.config import Adafactor, InverseSqrt, OptimizerConfig

ROWS, LENGTH = 2048, 512
STEPS = 1_000_000


def run() -> RunConfig:
    model = t5_11b()
    assert model.encoder is not None
    assert model.decoder is not None
    encoder, decoder = (replace(stack, remat=FULL) for stack in (model.encoder, model.decoder))
    source = JsonLines(paths=("data/*.jsonl.zst",))
    return RunConfig(
        model=replace(model, encoder=encoder, decoder=decoder),
        data=DataConfig(
            corpus=CorpusConfig(source=source, tokenizer=TrainSentencePiece(vocab_size=32000)),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(kind=Adafactor(), peak_lr=1e-2, schedule=InverseSqrt(warmup_steps=10_000)),
        objective=SpanCorruption(),
        batch=BatchConfig(rows=ROWS),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=1000, keep_latest=3),
        evals=EvalConfig(every=1000, batches=32),
    )
