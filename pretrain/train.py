"""The loop: one step runs while the numbers of the one before are written."""

import math
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from pretrain.checkpoint import manifest
from pretrain.checkpoint.manager import news_line
from pretrain.checkpoint.manifest import Progress
from pretrain.errors import CheckFailed, UserError
from pretrain.evaluate.perplexity import bits_per_byte
from pretrain.feed import HostBatch, train_batches
from pretrain.health import hosts, triage
from pretrain.health.config import Rewind, Skip
from pretrain.health.guard import Guard
from pretrain.health.spikes import Decision, Rewound, Spikes
from pretrain.health.watchdog import Watchdog
from pretrain.job import Job
from pretrain.metrics import throughput
from pretrain.metrics.progress import Progress as Display
from pretrain.plan.chips import compiler_options
from pretrain.samples import write_samples
from pretrain.state import TrainState
from pretrain.step import Step, pass_over

CLOCK_STEPS = 10
"""Between questions of many processes whether a checkpoint is due by the clock."""


@dataclass(kw_only=True)
class Pending:
    """A step whose numbers are still being computed."""

    step: int
    metrics: dict[str, jax.Array]
    batch: HostBatch
    waited: float


@dataclass(kw_only=True)
class Clock:
    """Seconds and tokens since the last line of the log."""

    since: float = field(default_factory=time.perf_counter)
    steps: int = 0
    tokens: float = 0.0
    waited: float = 0.0
    blocked: float = 0.0
    """Waiting for devices, this process's and those of others."""

    def add(self, tokens: float, waited: float, blocked: float) -> None:
        self.steps, self.tokens = self.steps + 1, self.tokens + tokens
        self.waited, self.blocked = self.waited + waited, self.blocked + blocked

    def pause(self, seconds: float) -> None:
        """Time that is not spent on steps."""
        self.since += seconds

    def read(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.since, 1e-9)
        facts = {
            "step_seconds": seconds / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "data_wait_seconds": self.waited / self.steps,
            "own_seconds": max(seconds - self.blocked, 0.0) / self.steps,
        }
        self.since, self.steps, self.tokens, self.waited, self.blocked = time.perf_counter(), 0, 0.0, 0.0, 0.0
        return facts


class Stop:
    """SIGTERM and Ctrl-C ask for a checkpoint and an end; with many processes SIGTERM does, at a step all agree on."""

    def __init__(self):
        self.how: Literal["preempted", "interrupted"] | None = None
        self._polls = 0
        self._old: dict[int, Any] = {}
        if jax.process_count() > 1:
            return
        self._old[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._preempt)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is where a shell runs it in its background
            self._old[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)

    def _preempt(self, *_) -> None:
        self.how = "preempted"

    def _interrupt(self, *_) -> None:
        if self.how == "interrupted":
            raise KeyboardInterrupt
        self.how = "interrupted"
        os.write(2, b"\nCtrl-C: this step ends and is saved; again stops at once\n")

    def asked(self) -> bool:
        """After each step, by every process: the steps of a run may go back, what they agree on may not."""
        self._polls += 1
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(self._polls):
            self.how = "preempted"
        return self.how is not None

    def close(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Loop:
    def __init__(self, job: Job, step: Step, state: TrainState, progress: Progress, dog: Watchdog):
        self.job, self.step, self.state, self.dog = job, step, state, dog
        self.tokens, self.start = progress.tokens, progress.step
        self.evaluation: dict[str, float] | None = None
        self.clock, self.pending = Clock(), None
        self.saved_at = time.monotonic()
        self.compiled = self.examined = False
        self.display = Display(job.config.steps, progress.step)
        self.spikes = Spikes(job.config.health, job.run, job.recorder)
        tell = partial(job.recorder.event, "corrupted")
        self.guard = Guard(job.config.health, list(job.mesh.devices.flat), tell)
        self.pass_over = jax.jit(pass_over, donate_argnums=0)

    def run(self, stop: Stop) -> dict[str, Any]:
        try:
            while True:
                try:
                    return self._train(stop)
                except Rewound as back:
                    self._rewind(back.decision)
        finally:
            self.display.close()

    def _train(self, stop: Stop) -> dict[str, Any]:
        config = self.job.config
        batches = train_batches(self.job.pipeline, self.job.feed, self.start, config.steps, config.data)
        try:
            for at in range(self.start + 1, config.steps + 1):
                self._step(at, batches)
                looks, stopping = self._due(config.evals.every, at), stop.asked()
                saves = stopping or self._due(config.checkpoint.every, at) or self._overdue(at)
                self.guard.rest(self.state, at, long=looks or saves)
                if looks:
                    self.evaluate(at)
                self.tell()
                if saves:
                    self.save(at)
                elif self._due(config.checkpoint.local_every, at):
                    self.keep(at)
                if stopping:
                    return self.finish(stop.how or "preempted", at)
            return self.finish("done", config.steps)
        finally:
            batches.close()

    def _due(self, every: int, step: int) -> bool:
        return step % every == 0 or step == self.job.config.steps

    def _step(self, at: int, batches) -> None:
        asked = time.perf_counter()
        with self.dog.phase("data"):
            batch = next(batches)
        waited = time.perf_counter() - asked
        on_device = self.job.feed.on_device(batch)
        if not self.compiled:
            self._compile(on_device)
            waited = 0.0  # before the clock began
        if self.spikes.left_out(at):
            self.state, metrics = self.pass_over(self.state, on_device)
        else:
            self.state, metrics = self.guard.step(self.step, self.state, on_device, at)
        self.settle()
        self.pending = Pending(step=at, metrics=metrics, batch=batch, waited=waited)

    def _compile(self, batch) -> None:
        began = time.perf_counter()
        with self.dog.phase("compile"):
            options = compiler_options(jax.devices()[0].device_kind)
            self.step = self.step.lower(self.state, batch).compile(compiler_options=options)
        seconds = time.perf_counter() - began
        self.job.recorder.event("compiled", seconds=seconds, since_start=time.time() - self.job.started)
        self.clock, self.compiled = Clock(), True

    def settle(self) -> None:
        """Reads the numbers of the step before, and stops the run, or sends it back, where they are not as expected."""
        pending, self.pending = self.pending, None
        if pending is None:
            return self.guard.check()
        asked = time.perf_counter()
        values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        self.guard.check()
        blocked = time.perf_counter() - asked
        self.dog.done(pending.step)
        if "loss" in values:
            if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
                self._not_finite(pending, values)
            self.spikes.see(pending.step, values)
        self.tokens += round(values["tokens"])
        self.clock.add(values["tokens"], pending.waited, blocked)
        every = self.job.config.log.every
        if pending.step % every == 0 or pending.step in (1, self.job.config.steps):
            self._log(pending, values)

    def _not_finite(self, pending: Pending, values: dict[str, float]) -> None:
        """Saves the batch, names the first tensor that is not finite, stops where no policy goes on from it."""
        job, at = self.job, pending.step
        found: triage.Finding | None = None
        if not self.examined:
            with self.dog.phase("compile"):
                batch = job.feed.on_device(pending.batch)
                found = triage.examine(job.objective, self.state, batch, job.config.batch.accumulate)
        first, self.examined = not self.examined, True
        told = (
            f"first not finite in {found}"
            if found
            else "every tensor alone is finite"
            if first
            else "see the first one"
        )
        reason = f"loss {values['loss']} and gradient norm {values['grad_norm']} at step {at}, expected finite"
        facts = {
            "step": at,
            "checkpoint": job.checkpoints.saved or 0,
            "first": found and asdict(found),
            "batch_hash": job.feed.hash(pending.batch),
            "values": values,
        }
        folder = triage.keep(job.run, at, pending.batch, jax.process_index(), facts)
        job.recorder.event("not_finite", step=at, first=found and str(found), folder=str(folder))
        if isinstance(job.config.health.policy, Skip | Rewind):
            return
        job.recorder.event("failed", step=at, reason=f"{reason}; {told}")
        raise CheckFailed(
            f"{reason}; {told}; parameters are those of step {at - 1}, the batch is in {folder}; "
            "lower optimizer.peak_lr"
        )

    def _rewind(self, decision: Decision) -> None:
        """To a checkpoint before the steps that are left out from now on."""
        job = self.job
        job.checkpoints.wait()
        kept = [s for s in manifest.numbered(job.checkpoints.folder) if s < decision.spike]
        first = decision.first
        if kept and first > 1 and not any(s < first for s in kept):
            first = min(kept) + 1  # a shorter way back than wished
        if jax.process_count() > 1:
            first = int(multihost_utils.broadcast_one_to_all(np.int32(first)))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.state)
        self.pending, self.evaluation = None, None
        self.guard.forget()
        job.checkpoints.drop_from(first)
        with self.dog.phase("restore"):
            del self.state
            found = job.checkpoints.resume(shapes)
            self.state, progress = found or (job.fresh(), Progress(step=0, tokens=0))
        made = self.spikes.decide(decision, first, progress.step, job.config.log.every)
        self.start, self.tokens = progress.step, progress.tokens
        self.display.note(f"step {made.spike} is a spike: back to {self.start}, without {made.first} to {made.last}")
        self.clock = Clock()

    def _log(self, pending: Pending, values: dict[str, float]) -> None:
        job, speed = self.job, self.clock.read()
        digest = job.feed.hash(pending.batch)
        line = {"step": pending.step, **values, "tokens": self.tokens, **speed, "batch_hash": digest}
        if math.isfinite(values.get("weight", math.nan)):
            line["weight"] = round(values["weight"])
        job.recorder.metrics(line)
        self._compare_hosts(pending.step, speed)
        device = jax.devices()[0]
        mfu = throughput.mfu(job.flops_per_token, speed["tokens_per_second"], jax.device_count(), device.device_kind)
        if "nll" in values:
            line |= bits_per_byte(job.config.objective, values["nll"], job.train.bytes_per_token)
        self.display.update({**line, "mfu": mfu})

    def _compare_hosts(self, at: int, speed: dict[str, float]) -> None:
        rows = hosts.gathered(speed)
        if slow := hosts.slow(rows):
            self.job.recorder.event("slow", step=at, processes=slow, rows=rows)
            for process in slow:
                row = ", ".join(f"{name} {value:.3g}" for name, value in rows[process].items())
                self.display.note(f"step {at}: process {process} is slow: {row}")

    def evaluate(self, at: int) -> None:
        self.settle()
        began = time.perf_counter()
        with self.dog.phase("evaluate"):
            self.evaluation = self.job.evaluator(self.state.model)
            if self.job.translator is not None:
                self.evaluation |= self.job.translator(self.state.model)
            self.job.recorder.evaluation(at, self.evaluation, time.perf_counter() - began)
            bits = f" bpb {self.evaluation['bits_per_byte']:.3f}" if "bits_per_byte" in self.evaluation else ""
            bleu = f" BLEU {self.evaluation['bleu']:.2f}" if "bleu" in self.evaluation else ""
            self.display.note(f"step {at} validation loss {self.evaluation['loss']:.4f}{bits}{bleu}")
            write_samples(self.job, self.state.model, at)
        self.clock.pause(time.perf_counter() - began)

    def _overdue(self, at: int) -> bool:
        """By the clock of the first process, which all of them ask at the same steps."""
        minutes, processes = self.job.config.checkpoint.every_minutes, jax.process_count()
        if minutes is None or (processes > 1 and at % CLOCK_STEPS):
            return False
        due = time.monotonic() - self.saved_at >= 60 * minutes
        return due if processes == 1 else bool(multihost_utils.broadcast_one_to_all(np.array(due)))

    def save(self, at: int) -> None:
        self.settle()
        checkpoints, self.saved_at = self.job.checkpoints, time.monotonic()
        if checkpoints.saved == at:
            return
        began = time.perf_counter()
        evaluated = self.evaluation if self._due(self.job.config.evals.every, at) else None
        with self.dog.phase("save"):
            checkpoints.save(self.state, Progress(step=at, tokens=self.tokens), evaluated)
        self.clock.pause(time.perf_counter() - began)
        self.tell()

    def keep(self, at: int) -> None:
        """A copy on each machine, where the config asks for such."""
        if self.job.config.checkpoint.local is None:
            return
        self.settle()
        began = time.perf_counter()
        with self.dog.phase("save"):
            self.job.checkpoints.keep(self.state, Progress(step=at, tokens=self.tokens))
        self.clock.pause(time.perf_counter() - began)

    def tell(self) -> None:
        """What became of saves that run beside the steps."""
        for kind, facts in self.job.checkpoints.news():
            self.job.recorder.event(kind, **facts)
            if line := news_line(kind, facts):
                self.display.note(line)

    def finish(self, how: str, at: int) -> dict[str, Any]:
        self.settle()
        self.save(at)
        with self.dog.phase("save"):
            self.job.checkpoints.close()
        self.tell()
        if self.job.checkpoints.saved != at:
            raise UserError(self.job.checkpoints.unsaved(at))
        self.job.recorder.event(how, step=at)
        return {
            "status": how,
            "step": at,
            "tokens": self.tokens,
            "validation": self.evaluation,
            "run": str(self.job.run),
        }


def loop(job: Job, step: Step, state: TrainState, progress: Progress) -> dict[str, Any]:
    """Trains from `progress` to the end, or to the step where a signal or a loss that is not finite stops it."""
    stop, tell = Stop(), partial(job.recorder.event, "hung")
    try:
        with Watchdog(job.run, job.config.health.hang_seconds, jax.process_index(), tell) as dog:
            return Loop(job, step, state, progress, dog).run(stop)
    finally:
        stop.close()
