"""From a config and a directory to a run: devices, data, state, loop."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils

from pretrain import elastic
from pretrain import run as runs
from pretrain.checkpoint import manifest
from pretrain.checkpoint.manager import Checkpoints, news_line
from pretrain.checkpoint.manifest import Progress
from pretrain.config import RunConfig
from pretrain.data.corpus import open_corpus, pipeline_of
from pretrain.data.lanes import Stream
from pretrain.data.pipeline import Pipeline
from pretrain.data.rows import Transform
from pretrain.data.streamed import Streamed
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.windows import Split
from pretrain.errors import UserError
from pretrain.evaluate.bleu import Translator
from pretrain.evaluate.perplexity import Evaluator
from pretrain.feed import Feed
from pretrain.metrics.progress import short_exponent
from pretrain.metrics.sinks import Recorder, read_lines
from pretrain.models import accounting, tree
from pretrain.objectives.batch import Objective
from pretrain.objectives.build import build as build_objective
from pretrain.objectives.config_parts import both
from pretrain.objectives.transforms import rows_of
from pretrain.opened import with_parameters
from pretrain.optimizer.schedules import learning_rate
from pretrain.sharding import mesh as meshes
from pretrain.sharding import place, quantised
from pretrain.sharding.processes import Processes, start
from pretrain.sharding.rules import resolved
from pretrain.state import TrainState, abstract, create, make_optimizer
from pretrain.step import make_step


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run ready to go on from `progress`."""

    config: RunConfig
    run: epath.Path
    mesh: jax.sharding.Mesh
    train: Split | Stream
    tokenizer: Tokenizer
    pipeline: Pipeline | Streamed
    feed: Feed
    evaluator: Evaluator
    translator: Translator | None
    checkpoints: Checkpoints
    recorder: Recorder
    flops_per_token: float
    objective: Objective
    fresh: Callable[[], TrainState]
    """The state before the first step."""
    started: float
    """Unix seconds, before anything was imported or prepared for this job."""


def compute_dtype(config: RunConfig) -> jnp.dtype:
    name = config.compute
    if name == "auto":
        name = "float32" if place.platform() == "cpu" else "bfloat16"
    return jnp.dtype(name)


@contextmanager
def _writable(run: epath.Path) -> Iterator[None]:
    """A disk that is full or can only be read ends the run with a sentence; what was saved stays."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise UserError(
            f"{run} cannot be written ({error.strerror}), expected room and permission; make both, then repeat the "
            "command: it goes on from the last checkpoint"
        ) from error


def _check(config: RunConfig) -> None:
    config.check()
    if config.model.matmuls != {"float"}:
        quantised.require()
    meshes.require(config.mesh)


def train(
    config: RunConfig,
    run: epath.Path,
    *,
    processes: Processes | None = None,
    allow: tuple[str, ...] = (),
    preset: str | None = None,
) -> dict[str, Any]:
    """Starts a run or goes on with the one in `run`; returns how it ended.

    Raises UserError for whatever is wrong with the input, CheckFailed when the loss is not finite.
    """
    from pretrain.train import loop

    started = time.time()
    _check(config)
    run = epath.Path(run)
    old = _previous(run)
    notes = runs.require_resumable(old, config, allow, run, manifest.latest(run / "checkpoints") or 0) if old else []
    speaks = processes is None or processes.index == 0
    if old and (facts := _finished(config, run, speaks)):
        return facts
    start(processes, config.simulate)
    cache_compilations()
    computed, fitted, adaptations = on_devices(config, old, run)
    notes += adaptations
    mesh = meshes.build(config.mesh)
    with _writable(run), place.use(mesh, resolved(config.rules), config.mesh.schedule):
        train_split, validation, tokenizer = _data(config, run, speaks)
        dtype = compute_dtype(config)
        optimizer = make_optimizer(config, dtype)
        checkpoints, state, progress = _state(config, run, optimizer, dtype, mesh)
        notes += _rates(old, config, progress.step)
        if speaks:
            _write_facts(config, run, preset, fitted)
        feed, objective = Feed(mesh, config.batch.rows), build_objective(config.objective)
        rows = rows_of(config, tokenizer)
        job = Job(
            config=config,
            run=run,
            mesh=mesh,
            train=train_split,
            tokenizer=tokenizer,
            pipeline=pipeline(config, train_split, rows),
            feed=feed,
            evaluator=Evaluator(config, objective, rows, validation, feed),
            translator=Translator.of(config, tokenizer, validation),
            checkpoints=checkpoints,
            recorder=Recorder(run, tensorboard=config.log.tensorboard, active=speaks),
            flops_per_token=_flops_per_token(config),
            objective=objective,
            fresh=lambda: fresh(config, optimizer, dtype, mesh)[0],
            started=started,
        )
        _tell(job, speaks, progress.step, notes)
        step = make_step(objective, optimizer, computed.batch.accumulate, config.health)
        try:
            return loop(job, jax.jit(step, donate_argnums=0), state, progress)
        finally:
            job.recorder.close()


def on_devices(config: RunConfig, old: RunConfig | None, run: epath.Path) -> tuple[RunConfig, int, list[str]]:
    """What is computed on the devices that are there, rows of a micro-batch that fit one, and what had to change."""
    devices = jax.device_count()
    fitted = (runs.read(run) or {}).get("device_rows") if old and old.batch == config.batch else None
    computed, notes = elastic.adapted(config, fitted, devices)
    computed.check(devices)
    return computed, fitted or elastic.device_rows(config, devices), notes


def _tell(job: Job, speaks: bool, at: int, changes: list[str]) -> None:
    """That it begins, what differs from the run before, and what became of the data."""
    begun = {"began": job.started, "log_every": job.config.log.every}
    job.recorder.event("resume" if at else "start", step=at, **begun)
    for kind, facts in job.checkpoints.news():
        _say(speaks, news_line(kind, facts))
        job.recorder.event(kind, **facts)
    for kind, notes in (("changed", changes), ("data", job.pipeline.notes)):
        for note in notes:
            _say(speaks, note)
            job.recorder.event(kind, step=at, what=note)


def _say(speaks: bool, line: str) -> None:
    if speaks:
        print(line, file=sys.stderr, flush=True)


def cache_compilations() -> None:
    """Compiled programs outlive the process, so that a resume starts at once. JAX_COMPILATION_CACHE_DIR moves them."""
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
        jax.config.update("jax_compilation_cache_dir", os.path.join(home, "pretrain", "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _previous(run: epath.Path) -> RunConfig | None:
    """The config of the run that is there. Raises UserError for a folder of something else."""
    if runs.read(run) is not None:
        return runs.read_config(run)
    if run.exists() and any(p.name not in ("data", "tokenizer") for p in run.iterdir()):
        raise UserError(f"{run}: found files but no run.json, expected a run or an empty folder; use another --run")
    return None


def _finished(config: RunConfig, run: epath.Path, speaks: bool) -> dict[str, Any] | None:
    """What `train` returned when it ended a run of so many steps; None where it has not. Raises UserError beyond it."""
    newest = manifest.latest(run / "checkpoints") or 0
    if newest > config.steps:
        raise UserError(
            f"{run} is at step {newest}, expected at most steps={config.steps}; "
            f"set steps to {newest} or more, or use another --run"
        )
    ended = {e.get("kind"): e for e in read_lines(run / "events.jsonl") if e.get("step") == newest == config.steps}
    if "done" not in ended:
        return None
    _say(speaks, f"{run} is finished, nothing is left to do; --steps N --allow steps trains on")
    measured = {k: v for k, v in ended.get("evaluation", {}).items() if k not in ("time", "kind", "step", "seconds")}
    return {
        "status": "done",
        "step": newest,
        "tokens": manifest.read(run / "checkpoints" / str(newest)).progress.tokens,
        "validation": measured or None,
        "run": str(run),
    }


def _rates(old: RunConfig | None, new: RunConfig, step: int) -> list[str]:
    """What other steps or another optimizer do to the schedule at a resume; nothing where they are the same."""
    if old is None or not step or (old.steps, old.optimizer) == (new.steps, new.optimizer):
        return []
    last = float(learning_rate(old.optimizer, step - 1, old.steps))
    following = float(learning_rate(new.optimizer, step, new.steps))
    return [f"learning rate {short_exponent(last)} at step {step}, {short_exponent(following)} at step {step + 1}"]


def _data(config: RunConfig, run: epath.Path, first: bool) -> tuple[Split | Stream, Split, Tokenizer]:
    """Process 0 prepares, the others wait; all read the same folder."""
    folder = os.fspath(run / "data")
    prepared = open_corpus(config.prepared(), folder) if first else None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("data prepared")
    train_split, validation, tokenizer = prepared or open_corpus(config.prepared(), folder, prepare=False)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, model.vocab_size={config.model.vocab_size} holds fewer; "
            f"set model.vocab_size to at least {tokenizer.vocab_size}"
        )
    return train_split, validation, tokenizer


def pipeline(config: RunConfig, split: Split | Stream, rows: Transform) -> Pipeline | Streamed:
    made = pipeline_of(split, rows, config.data, config.batch.rows)
    made.require(config.steps)
    return made


def _flops_per_token(config: RunConfig) -> float:
    """Tokens of both stacks count, each is read by one."""
    return accounting.flops_per_token(config.model, config.data.sequence_length) / (1 + both(config.model))


def _write_facts(config: RunConfig, run: epath.Path, preset: str | None, device_rows: int) -> None:
    device = jax.devices()[0]
    old = runs.read(run) or {}
    runs.write(
        run,
        config,
        preset=old.get("preset", preset),
        hardware={
            "platform": device.platform,
            "device_kind": device.device_kind,
            "devices": jax.device_count(),
            "processes": jax.process_count(),
        },
        device_rows=device_rows,
        parameters=tree.size(tree.abstract(config.model)),
        flops_per_token=_flops_per_token(config),
        **({"created": old["created"]} if "created" in old else {}),
    )


def _state(config: RunConfig, run: epath.Path, optimizer, dtype, mesh) -> tuple[Checkpoints, TrainState, Progress]:
    """Of the newest checkpoint that is whole, or fresh; what is wrong with a fresh one is found before anything is
    written."""
    folder = run / "checkpoints"
    begun = None if folder.exists() else fresh(config, optimizer, dtype, mesh)
    checkpoints = Checkpoints(folder, config.checkpoint, runs.origin(config), lambda: runs.identity(run))
    if begun is None and (found := checkpoints.resume(abstract(config, optimizer, dtype, mesh))):
        return checkpoints, *found
    state, parent = begun or fresh(config, optimizer, dtype, mesh)
    checkpoints.origin["parent"] = parent
    return checkpoints, state, Progress(step=0, tokens=0)


def fresh(config: RunConfig, optimizer, dtype, mesh) -> tuple[TrainState, dict[str, Any] | None]:
    """A state before its first step, and where its parameters came from."""
    state = create(config, optimizer, dtype, mesh)
    if config.start_from is None:
        return state, None
    model, parent = with_parameters(state.model, config.start_from, config.start_layers)
    return replace(state, model=model), parent
