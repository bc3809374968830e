"""A BART of four million parameters restores noisy sources of the standard library: a hundred steps, about a minute on
two cores."""

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.bart import bart
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary, TrainSentencePiece
from pretrain.objectives.config import Denoising
from pretrain.optimizer.config import Cosine, Muon, OptimizerConfig


def run() -> RunConfig:
    return RunConfig(
        model=bart(vocab_size=2048, d_model=192, layers=3, heads=6, length=256),
        data=DataConfig(
            corpus=CorpusConfig(
                source=StandardLibrary(limit=150),
                tokenizer=TrainSentencePiece(vocab_size=2048, sample_bytes=1_000_000),
                validation_fraction=0.05,
            ),
            sequence_length=256,
        ),
        objective=Denoising(),
        optimizer=OptimizerConfig(kind=Muon(), peak_lr=3e-3, schedule=Cosine(warmup_steps=10)),
        batch=BatchConfig(rows=8),
        steps=100,
        checkpoint=CheckpointConfig(every=25),
        evals=EvalConfig(every=50, batches=8),
        log=LogConfig(every=1),
    )
