"""A DeepSeek-V3 of 3.6 million parameters on the standard library's sources: a hundred steps, two and a half minutes of
CPU time on Zen 3 cores, end at a validation loss of 5.76: 4.44, and 0.3 times as much for the token after next."""

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.deepseek import deepseek, v3_router
from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary, TrainSentencePiece
from pretrain.optimizer.config import WSD, DecayFraction, Muon, OptimizerConfig


def run() -> RunConfig:
    model = deepseek(
        vocab_size=2048,
        d_model=128,
        layers=4,
        dense_layers=1,
        heads=4,
        query_rank=96,
        kv_rank=64,
        nope_dim=32,
        rope_dim=16,
        value_dim=32,
        d_ff=96,
        d_ff_dense=352,
        experts=16,
        shared=1,
        router=v3_router(top_k=4, groups=4, top_groups=2, scale=2.5, balance_loss=1e-4),
        ahead=1,
    )
    return RunConfig(
        model=model,
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
