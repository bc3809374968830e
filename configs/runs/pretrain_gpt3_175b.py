"""GPT-3 175B (Brown et al. 2020, table 2.1) on 512 chips of v5p: 300 billion tokens in batches of 3.1 million."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, RunConfig
from pretrain.configs.gpt3 import gpt3_175b
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.remat import FULL
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.config import Cosine, OptimizerConfig

ROWS, LENGTH = 1536, 2048
STEPS = 300_000_000_000 // (ROWS * LENGTH)


def run() -> RunConfig:
    model = gpt3_175b()
    assert model.decoder is not None
    source = JsonLines(paths=("data/*.jsonl.zst",))
    return RunConfig(
        model=replace(model, decoder=replace(model.decoder, remat=FULL)),
        data=DataConfig(
            corpus=CorpusConfig(source=source, tokenizer=TrainSentencePiece(vocab_size=50257)),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(peak_lr=6e-5, schedule=Cosine(warmup_steps=120)),
        objective=NextToken(loss=LossConfig(chunk=512)),
        batch=BatchConfig(rows=ROWS),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=1000, keep_latest=3),
        evals=EvalConfig(every=1000, batches=32),
    )
