"""A Llama of 1.1 billion parameters on 64 chips: 100 billion tokens of your text (data/*.jsonl.zst)."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.llama import llama
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.remat import SAVE_ATTENTION
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.config import WSD, OptimizerConfig
from pretrain.sharding.mesh import MeshConfig

ROWS, LENGTH = 512, 2048
STEPS = 100_000_000_000 // (ROWS * LENGTH)


def run() -> RunConfig:
    model = llama(vocab_size=32768, d_model=2048, layers=22, heads=32, kv_heads=4, d_ff=5632)
    assert model.decoder is not None
    return RunConfig(
        model=replace(model, decoder=replace(model.decoder, remat=SAVE_ATTENTION)),
        data=DataConfig(
            corpus=CorpusConfig(
                source=JsonLines(paths=("data/*.jsonl.zst",)), tokenizer=TrainSentencePiece(vocab_size=32768)
            ),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(peak_lr=4e-4, schedule=WSD(warmup_steps=2000)),
        objective=NextToken(loss=LossConfig(z_loss=1e-4, chunk=512)),
        batch=BatchConfig(rows=ROWS),
        mesh=MeshConfig(fsdp=-1, tensor=1),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=1000, keep_latest=3),
        evals=EvalConfig(every=1000, batches=32),
        log=LogConfig(every=10),
    )
