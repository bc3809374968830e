"""Llama 3.1 405B (Llama team 2024, arXiv:2407.21783, section 3.4.1) on 2048 chips of v5p: 15.6 trillion tokens in
batches of 16 million."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, RunConfig
from pretrain.configs.llama import llama3_405b
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.remat import FULL
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.config import Cosine, OptimizerConfig

ROWS, LENGTH = 2048, 8192
STEPS = 15_600_000_000_000 // (ROWS * LENGTH)


def run() -> RunConfig:
    model = llama3_405b()
    assert model.decoder is not None
    source = JsonLines(paths=("data/*.jsonl.zst",))
    return RunConfig(
        model=replace(model, decoder=replace(model.decoder, remat=FULL)),
        data=DataConfig(
            corpus=CorpusConfig(source=source, tokenizer=TrainSentencePiece(vocab_size=128000)),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(peak_lr=8e-5, schedule=Cosine(warmup_steps=8000)),
        objective=NextToken(loss=LossConfig(chunk=512)),
        batch=BatchConfig(rows=ROWS),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=1000, keep_latest=3),
        evals=EvalConfig(every=1000, batches=32),
    )
