"""A Mixtral of 3.6 million parameters, 1.3 of them active, on the standard library's sources: a hundred steps, two
minutes of CPU time on Zen 3 cores, end at a validation loss of 4.76, of which 0.05 are the mixtures' own."""

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.mixtral import mixtral
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary, TrainSentencePiece
from pretrain.optimizer.config import WSD, DecayFraction, Muon, OptimizerConfig


def run() -> RunConfig:
    sizes = {"vocab_size": 2048, "d_model": 128, "layers": 4, "heads": 4, "kv_heads": 2, "tied": True}
    return RunConfig(
        model=mixtral(**sizes, d_ff=256, experts=8, top_k=2, balance_loss=0.01, z_loss=1e-3),
        data=DataConfig(
            corpus=CorpusConfig(
                source=StandardLibrary(limit=150),
                tokenizer=TrainSentencePiece(vocab_size=2048, sample_bytes=1_000_000),
                validation_fraction=0.05,
            ),
            sequence_length=256,
        ),
        optimizer=OptimizerConfig(
            kind=Muon(), peak_lr=3e-3, schedule=WSD(warmup_steps=5, decay=DecayFraction(fraction=0.3))
        ),
        batch=BatchConfig(rows=8),
        steps=100,
        checkpoint=CheckpointConfig(every=25),
        evals=EvalConfig(every=50, batches=4, prompts=("def ",), sample_tokens=24),
        log=LogConfig(every=1),
    )
