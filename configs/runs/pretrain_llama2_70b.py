"""Llama 2 70B (Touvron et al. 2023b, section 2.2) on 64 chips of v5p: 2 trillion tokens in batches of 4 million, each
in eight parts."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, RunConfig
from pretrain.configs.llama import llama2_70b
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.config import Remat
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.config import Cosine, OptimizerConfig

SAVED = Remat(save=("query",))
"""All other products but the last are done twice, and the attention."""
ROWS, LENGTH = 1024, 4096
STEPS = 2_000_000_000_000 // (ROWS * LENGTH)


def run() -> RunConfig:
    model = llama2_70b()
    assert model.decoder is not None
    source = JsonLines(paths=("data/*.jsonl.zst",))
    return RunConfig(
        model=replace(model, decoder=replace(model.decoder, remat=SAVED)),
        data=DataConfig(
            corpus=CorpusConfig(source=source, tokenizer=TrainSentencePiece(vocab_size=32000)),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(peak_lr=1.5e-4, schedule=Cosine(warmup_steps=2000)),
        objective=NextToken(loss=LossConfig(chunk=512)),
        batch=BatchConfig(rows=ROWS, accumulate=8),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=1000, keep_latest=3),
        evals=EvalConfig(every=1000, batches=32),
    )
