"""A Llama of a million parameters on the standard library's sources: sixty steps, about a minute on two cores."""

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.llama import llama
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary, TrainSentencePiece
from pretrain.optimizer.config import Cosine, OptimizerConfig


def run() -> RunConfig:
    return RunConfig(
        model=llama(vocab_size=2048, d_model=128, layers=4, heads=4, kv_heads=2, d_ff=352, tied=True),
        data=DataConfig(
            corpus=CorpusConfig(
                source=StandardLibrary(limit=150),
                tokenizer=TrainSentencePiece(vocab_size=2048, sample_bytes=1_000_000),
                validation_fraction=0.05,
            ),
            sequence_length=256,
        ),
        optimizer=OptimizerConfig(peak_lr=3e-3, schedule=Cosine(warmup_steps=10)),
        batch=BatchConfig(rows=8),
        steps=60,
        checkpoint=CheckpointConfig(every=20),
        evals=EvalConfig(every=30, batches=4, prompts=("def ",), sample_tokens=24),
        log=LogConfig(every=1),
    )
