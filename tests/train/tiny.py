"""A run small enough for tests. Also a program: python tiny.py TEXT RUN [KEY=VALUE ...] trains it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from pretrain.config import BatchConfig, CheckpointConfig, EvalConfig, LogConfig, RunConfig
from pretrain.configs.llama import llama
from pretrain.data.config import CorpusConfig, DataConfig, TextFiles, TrainSentencePiece
from pretrain.health.config import HealthConfig
from pretrain.metrics.sinks import read_lines
from pretrain.objectives.config import LossConfig, NextToken
from pretrain.optimizer.config import Constant, OptimizerConfig
from pretrain.sharding.axes import MESH_AXES
from pretrain.sharding.mesh import MeshConfig

ROOT = Path(__file__).parents[2]


def config(text: Path, **changes) -> RunConfig:
    tokenizer = TrainSentencePiece(vocab_size=400, sample_bytes=20_000)
    run = RunConfig(
        model=llama(vocab_size=400, d_model=32, layers=2, heads=4, kv_heads=2, d_ff=64),
        data=DataConfig(
            corpus=CorpusConfig(
                source=TextFiles(paths=(str(text),)), tokenizer=tokenizer, validation_fraction=0.2, record_tokens=64
            ),
            sequence_length=32,
        ),
        optimizer=OptimizerConfig(peak_lr=1e-2, schedule=Constant(warmup_steps=2)),
        objective=NextToken(loss=LossConfig(chunk=16, z_loss=1e-4)),
        batch=BatchConfig(rows=8),
        steps=30,
        mesh=MeshConfig(fsdp=1),
        simulate=1,
        checkpoint=CheckpointConfig(every=4),
        evals=EvalConfig(every=10, batches=2),
        log=LogConfig(every=1, tensorboard=False),
    )
    return replace(run, **changes)


def start(text: Path, run: Path, *arguments: str) -> subprocess.Popen:
    """Trains in a process of its own."""
    command = [sys.executable, "-m", "tests.train.tiny", str(text), str(run), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(run.parent / "cache")}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def lines(run: Path) -> list[dict]:
    from etils import epath

    return read_lines(epath.Path(run) / "metrics.jsonl")


def main() -> None:
    from pretrain.job import train
    from pretrain.sharding.processes import Processes

    text, run, *rest = sys.argv[1:]
    given = dict(a.split("=", 1) for a in rest)
    processes = None
    if "process" in given:
        processes = Processes(coordinator=given["coordinator"], count=int(given["count"]), index=int(given["process"]))
    changes: dict = {"steps": int(given.get("steps", 30)), "simulate": int(given.get("simulate", 1))}
    sizes = {k: int(given[k]) for k in MESH_AXES if k in given}
    changes["mesh"] = MeshConfig(**sizes) if sizes else MeshConfig(fsdp=-1)
    changes["rules"] = given.get("rules", "fsdp")
    if "hang" in given:
        changes["health"] = HealthConfig(hang_seconds=float(given["hang"]))
    if "local" in given:
        every, local_every = int(given.get("every", 100)), int(given.get("local_every", 2))
        changes["checkpoint"] = CheckpointConfig(every=every, local=given["local"], local_every=local_every)
    run_config = config(Path(text), **changes)
    if "offload" in given:
        run_config = replace(run_config, optimizer=replace(run_config.optimizer, offload=True))
    if "streaming" in given:
        run_config = replace(run_config, data=replace(run_config.data, streaming=True))
    print(json.dumps(train(run_config, Path(run), processes=processes, allow=("steps",))))


if __name__ == "__main__":
    main()
