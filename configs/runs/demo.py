"""The first run on a new machine: a small Llama, all of the standard library, about two minutes on two cores."""

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.llama import llama
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary, TrainSentencePiece
from pretrain.optimizer.config import WSD, DecayFraction, Muon, OptimizerConfig


def run() -> RunConfig:
    return RunConfig(
        model=llama(vocab_size=4096, d_model=192, layers=6, heads=6, kv_heads=2, d_ff=512, tied=True),
        data=DataConfig(
            corpus=CorpusConfig(
                source=StandardLibrary(),
                tokenizer=TrainSentencePiece(vocab_size=4096, sample_bytes=4_000_000),
                validation_fraction=0.02,
            ),
            sequence_length=256,
        ),
        optimizer=OptimizerConfig(
            kind=Muon(),
            peak_lr=3e-3,
            schedule=WSD(warmup_steps=5, decay=DecayFraction(fraction=0.3)),
        ),
        batch=BatchConfig(rows=8),
        steps=150,
        checkpoint=CheckpointConfig(every=50),
        evals=EvalConfig(
            every=50, batches=8, prompts=("def __init__(self", "import os\n", "    for name in "), sample_tokens=40
        ),
        log=LogConfig(every=5),
    )
