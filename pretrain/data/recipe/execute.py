"""A job's tasks on this machine, on Slurm or on Ray, by datatrove's executors. No task is done twice."""

import contextlib
import io
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import dill
from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor

from pretrain.data.processes import die_with_parent
from pretrain.data.recipe.config import Executor, Local, Ray, Slurm
from pretrain.data.recipe.steps import Job
from pretrain.errors import UserError

Progress = Callable[[str, int, int], None]
"""Of a job's name, the tasks that are done, and all."""


def run_job(job: Job, logs: Path, executor: Executor, workers: int, progress: Progress) -> None:
    """Returns when every task of the job is done. Raises UserError, naming the logs, where one is not."""
    engine = _engine(job, logs, executor)
    missing = engine.get_incomplete_ranks()
    progress(job.name, job.tasks - len(missing), job.tasks)
    if not missing:
        return
    if job.before is not None:
        job.before()
    if isinstance(executor, Local):
        _locally(engine, missing, workers, lambda done: progress(job.name, job.tasks - len(missing) + done, job.tasks))
    elif isinstance(executor, Slurm):
        assert isinstance(engine, _Slurm)
        _on_slurm(engine, executor.poll, lambda left: progress(job.name, job.tasks - left, job.tasks))
    else:
        _on_ray(engine, executor)
    if left := engine.get_incomplete_ranks():
        message = f"found {len(left)} of {job.tasks} tasks of {job.name} failed, expected none"
        raise UserError(f"{message}; read {logs}, then repeat the command; it continues")


def _engine(job: Job, logs: Path, executor: Executor) -> PipelineExecutor:
    log = str(logs)
    if isinstance(executor, Local):
        return LocalPipelineExecutor(job.pipeline, tasks=job.tasks, logging_dir=log)
    shared = {
        "tasks": job.tasks,
        "workers": executor.workers,
        "tasks_per_job": executor.tasks_per_job,
        "cpus_per_task": executor.cpus_per_task,
        "mem_per_cpu_gb": executor.gigabytes_per_cpu,
        "logging_dir": log,
    }
    if isinstance(executor, Slurm):
        return _Slurm(
            job.pipeline,
            partition=executor.partition,
            time=executor.time,
            qos=executor.qos,
            env_command=executor.environment,
            job_name=job.name,
            **shared,
        )
    from datatrove.executor.ray import RayPipelineExecutor

    return RayPipelineExecutor(job.pipeline, **shared)


def _locally(engine: PipelineExecutor, missing: list[int], workers: int, progress: Callable[[int], None]) -> None:
    # In our own processes: datatrove's have a manager that outlives a kill of its parent and keeps the folder's lock.
    data = dill.dumps(engine)
    if workers <= 1 or len(missing) <= 1:
        for done, rank in enumerate(missing, start=1):
            _task(data, rank)
            progress(done)
        return
    context = multiprocessing.get_context("spawn")
    parent = (os.getpid(),)
    with ProcessPoolExecutor(min(workers, len(missing)), context, die_with_parent, parent) as pool:
        try:
            futures = [pool.submit(_task, data, rank) for rank in missing]
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                progress(done)
        except BrokenProcessPool:
            message = f"found a worker killed while cleaning, expected enough memory for {workers}"
            raise UserError(f"{message}; repeat the command with fewer workers; it continues") from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _task(data: bytes, rank: int) -> None:
    engine: PipelineExecutor = dill.loads(data)  # anew for each: steps keep counts
    with contextlib.redirect_stderr(io.StringIO()):  # tracebacks and bars; an error is raised, and stands in the logs
        engine._run_for_rank(rank, local_rank=1)


class _Slurm(SlurmPipelineExecutor):
    def launch_merge_stats(self) -> None:
        """Nobody reads datatrove's statistics: the funnel has ours."""


def _on_slurm(engine: _Slurm, poll: float, progress: Callable[[int], None]) -> None:
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        message = "found a task of a Slurm array, expected a login node or a job of one task"
        raise UserError(f"{message}; begin the command there, it submits the arrays itself")
    noted = Path(str(engine.logging_dir.resolve_paths("submitted.json")))
    job = json.loads(noted.read_text()) if noted.is_file() else None
    if job is None or not _queued(job):  # one that a killed command submitted goes on without it
        try:
            engine.run()
        except (OSError, subprocess.CalledProcessError) as e:
            raise UserError(
                f"found that sbatch failed ({e}), expected a Slurm cluster; run it where it works"
            ) from None
        job = engine.job_id
        noted.write_text(json.dumps(job))
    while left := engine.get_incomplete_ranks():
        progress(len(left))
        if not _queued(job):
            return
        time.sleep(poll)


def _queued(job: object) -> bool:
    answer = subprocess.run(["squeue", "--noheader", f"--jobs={job}"], capture_output=True, text=True)
    return answer.returncode == 0 and bool(answer.stdout.strip())


def _on_ray(engine: PipelineExecutor, executor: Ray) -> None:
    try:
        import ray  # type: ignore  # an extra
    except ImportError:
        raise UserError("found no ray, expected it for the Ray executor; pip install ray") from None
    try:
        ray.init(address=executor.address, ignore_reinit_error=True, log_to_driver=False)
    except ConnectionError as e:
        reason = " ".join(str(e).split())
        raise UserError(
            f"found no Ray cluster at {executor.address} ({reason}); correct address or begin one"
        ) from None
    engine.run()
