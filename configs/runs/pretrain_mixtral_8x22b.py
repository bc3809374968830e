"""Mixtral 8x22B (Mistral AI 2024, release 0.1) on 256 chips of v5p, 8 of which share the experts: a trillion tokens
in batches of 4 million. Its authors published neither their tokens nor their rates; these are of
Llama 2 70B."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, RunConfig
from pretrain.configs.mixtral import mixtral_8x22b
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.remat import FULL
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.config import Cosine, OptimizerConfig
from pretrain.sharding.mesh import MeshConfig

ROWS, LENGTH = 1024, 4096
STEPS = 1_000_000_000_000 // (ROWS * LENGTH)


def run() -> RunConfig:
    model = mixtral_8x22b()
    assert model.decoder is not None
    source = JsonLines(paths=("data/*.jsonl.zst",))
    return RunConfig(
        model=replace(model, decoder=replace(model.decoder, remat=FULL)),
        data=DataConfig(
            corpus=CorpusConfig(source=source, tokenizer=TrainSentencePiece(vocab_size=32000)),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(peak_lr=1.5e-4, schedule=Cosine(warmup_steps=2000)),
        objective=NextToken(loss=LossConfig(chunk=512)),
        batch=BatchConfig(rows=ROWS),
        mesh=MeshConfig(expert=8),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=1000, keep_latest=3),
        evals=EvalConfig(every=1000, batches=32),
    )
