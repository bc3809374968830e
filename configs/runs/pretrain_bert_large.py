"""BERT-large (Devlin et al. 2019, appendix A.2) on 16 chips of v5e: a million batches of 256 rows of 512 tokens."""

from dataclasses import replace

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, RunConfig
from pretrain.configs.bert import large
from pretrain.data.config import CorpusConfig, DataConfig, JsonLines, TrainSentencePiece
from pretrain.models.remat import FULL
from pretrain.objectives.config import MaskedLm, Sentences
from pretrain.optimizer.config import Linear, OptimizerConfig

ROWS, LENGTH = 256, 512
STEPS = 1_000_000


def run() -> RunConfig:
    model = large()
    assert model.encoder is not None
    source = JsonLines(paths=("data/*.jsonl.zst",))
    return RunConfig(
        model=replace(model, encoder=replace(model.encoder, remat=FULL)),
        data=DataConfig(
            corpus=CorpusConfig(source=source, tokenizer=TrainSentencePiece(vocab_size=30522)),
            sequence_length=LENGTH,
            workers=4,
            prefetch=4,
        ),
        optimizer=OptimizerConfig(peak_lr=1e-4, schedule=Linear(warmup_steps=10_000)),
        objective=MaskedLm(sentences=Sentences()),
        batch=BatchConfig(rows=ROWS),
        steps=STEPS,
        checkpoint=CheckpointConfig(every=1000, keep_latest=3),
        evals=EvalConfig(every=1000, batches=32),
    )
