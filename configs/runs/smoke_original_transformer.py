"""The Transformer of 2017, four million parameters, translates signatures of the standard library's functions into what
they do: a hundred steps, about a minute on two cores, end at a validation loss of 5.43."""

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.original_transformer import original_transformer
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibraryPairs, TrainSentencePiece
from pretrain.objectives.config import LossConfig, SequencePairs
from pretrain.optimizer.config import InverseSqrt, Muon, OptimizerConfig


def run() -> RunConfig:
    return RunConfig(
        model=original_transformer(vocab_size=2048, d_model=192, layers=3, heads=6, d_ff=768),
        data=DataConfig(
            corpus=CorpusConfig(
                source=StandardLibraryPairs(),
                tokenizer=TrainSentencePiece(vocab_size=2048, sample_bytes=1_000_000),
                validation_fraction=0.05,
            ),
            sequence_length=128,
        ),
        objective=SequencePairs(target_length=192, loss=LossConfig(label_smoothing=0.1)),
        optimizer=OptimizerConfig(kind=Muon(), peak_lr=6e-3, schedule=InverseSqrt(warmup_steps=10)),
        batch=BatchConfig(rows=8),
        steps=100,
        checkpoint=CheckpointConfig(every=25),
        evals=EvalConfig(every=50, batches=8),
        log=LogConfig(every=1),
    )
