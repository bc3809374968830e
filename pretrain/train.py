"""The loop: one step runs while the numbers of the one before are written."""

import math
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import multihost_utils

from pretrain.checkpoint.manager import news_line
from pretrain.checkpoint.manifest import Progress
from pretrain.errors import CheckFailed, UserError
from pretrain.evaluate.perplexity import bits_per_byte
from pretrain.feed import HostBatch, train_batches
from pretrain.job import Job
from pretrain.metrics import throughput
from pretrain.metrics.progress import Progress as Display
from pretrain.samples import write_samples
from pretrain.state import TrainState
from pretrain.step import Step

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

    def add(self, tokens: float, waited: float) -> None:
        self.steps, self.tokens, self.waited = self.steps + 1, self.tokens + tokens, self.waited + waited

    def pause(self, seconds: float) -> None:
        """Time that is not spent on steps."""
        self.since += seconds

    def read(self) -> dict[str, float]:
        seconds = max(time.perf_counter() - self.since, 1e-9)
        facts = {
            "step_seconds": seconds / self.steps,
            "tokens_per_second": self.tokens / seconds,
            "data_wait_seconds": self.waited / self.steps,
        }
        self.since, self.steps, self.tokens, self.waited = time.perf_counter(), 0, 0.0, 0.0
        return facts


class Stop:
    """SIGTERM and Ctrl-C ask for a checkpoint and an end; with many processes SIGTERM does, at a step all agree on."""

    def __init__(self):
        self.how: Literal["preempted", "interrupted"] | None = None
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

    def asked(self, step: int) -> bool:
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.how = "preempted"
        return self.how is not None

    def close(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Loop:
    def __init__(self, job: Job, step: Step, state: TrainState, progress: Progress):
        self.job, self.step, self.state = job, step, state
        self.tokens, self.start = progress.tokens, progress.step
        self.evaluation: dict[str, float] | None = None
        self.clock, self.pending = Clock(), None
        self.saved_at = time.monotonic()
        self.display = Display(job.config.steps, progress.step)

    def run(self, stop: Stop) -> dict[str, Any]:
        config, at = self.job.config, self.start
        batches = train_batches(self.job.pipeline, self.job.feed, at, config.steps, config.data)
        try:
            for at in range(self.start + 1, config.steps + 1):
                self._step(at, batches)
                if self._due(config.evals.every, at):
                    self.evaluate(at)
                stopping = stop.asked(at)
                self.tell()
                if stopping or self._due(config.checkpoint.every, at) or self._overdue(at):
                    self.save(at)
                if stopping:
                    return self.finish(stop.how or "preempted", at)
            return self.finish("done", config.steps)
        finally:
            batches.close()
            self.display.close()

    def _due(self, every: int, step: int) -> bool:
        return step % every == 0 or step == self.job.config.steps

    def _step(self, at: int, batches) -> None:
        asked = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - asked
        on_device = self.job.feed.on_device(batch)
        if at == self.start + 1:
            self._compile(on_device)
            waited = 0.0  # before the clock began
        self.state, metrics = self.step(self.state, on_device)
        self.settle()
        self.pending = Pending(step=at, metrics=metrics, batch=batch, waited=waited)

    def _compile(self, batch) -> None:
        began = time.perf_counter()
        self.step = self.step.lower(self.state, batch).compile()
        seconds = time.perf_counter() - began
        self.job.recorder.event("compiled", seconds=seconds, since_start=time.time() - self.job.started)
        self.clock = Clock()

    def settle(self) -> None:
        """Reads the numbers of the step before, and stops the run where they are not finite."""
        pending, self.pending = self.pending, None
        if pending is None:
            return
        values = {name: float(value) for name, value in jax.device_get(pending.metrics).items()}
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            reason = (
                f"loss {values['loss']} and gradient norm {values['grad_norm']} at step {pending.step}, expected finite"
            )
            self.job.recorder.event("failed", step=pending.step, reason=reason)
            raise CheckFailed(f"{reason}; parameters are those of step {pending.step - 1}; lower optimizer.peak_lr")
        self.tokens += round(values["tokens"])
        self.clock.add(values["tokens"], pending.waited)
        every = self.job.config.log.every
        if pending.step % every == 0 or pending.step in (1, self.job.config.steps):
            self._log(pending, values)

    def _log(self, pending: Pending, values: dict[str, float]) -> None:
        job, speed = self.job, self.clock.read()
        digest = job.feed.hash(pending.batch)
        line = {"step": pending.step, **values, "tokens": self.tokens, **speed, "batch_hash": digest}
        line["weight"] = round(values["weight"])
        job.recorder.metrics(line)
        device = jax.devices()[0]
        mfu = throughput.mfu(job.flops_per_token, speed["tokens_per_second"], jax.device_count(), device.device_kind)
        bits = bits_per_byte(job.config.objective, values["nll"], job.train.bytes_per_token)
        self.display.update({**line, **bits, "mfu": mfu})

    def evaluate(self, at: int) -> None:
        self.settle()
        began = time.perf_counter()
        self.evaluation = self.job.evaluator(self.state.model)
        if self.job.translator is not None:
            self.evaluation |= self.job.translator(self.state.model)
        self.job.recorder.evaluation(at, self.evaluation)
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
        checkpoints.save(self.state, Progress(step=at, tokens=self.tokens), evaluated)
        self.clock.pause(time.perf_counter() - began)
        self.tell()

    def tell(self) -> None:
        """What became of saves that run beside the steps."""
        for kind, facts in self.job.checkpoints.news():
            self.job.recorder.event(kind, **facts)
            if line := news_line(kind, facts):
                self.display.note(line)

    def finish(self, how: str, at: int) -> dict[str, Any]:
        self.settle()
        self.save(at)
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
    stop = Stop()
    try:
        return Loop(job, step, state, progress).run(stop)
    finally:
        stop.close()
