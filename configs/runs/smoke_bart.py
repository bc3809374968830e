"""A BART of three million parameters restores noisy sources of the standard library: a hundred steps, about a minute on
two cores, end at a validation loss of 4.54."""

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.bart import bart
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary, TrainSentencePiece
from pretrain.objectives.config import Denoising
from pretrain.optimizer.config import Cosine, Muon, OptimizerConfig


def run() -> RunConfig:
    return RunConfig(
        model=bart(vocab_size=2048, d_model=192, layers=2, heads=6, length=192),
        data=DataConfig(
            corpus=CorpusConfig(
                source=StandardLibrary(limit=150),
                tokenizer=TrainSentencePiece(vocab_size=2048, sample_bytes=1_000_000),
                validation_fraction=0.05,
            ),
            sequence_length=192,
        ),
        objective=Denoising(),
        optimizer=OptimizerConfig(kind=Muon(), peak_lr=6e-3, schedule=Cosine(warmup_steps=10)),
        batch=BatchConfig(rows=8),
        steps=100,
        checkpoint=CheckpointConfig(every=25),
        evals=EvalConfig(every=50, batches=8),
        log=LogConfig(every=1),
    )
