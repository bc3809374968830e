"""Checkpoints of a run: written in the background, committed by one rename, checked before they are believed."""

import json
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from pretrain.checkpoint import layout
from pretrain.config import CheckpointConfig
from pretrain.errors import UserError

DELETED = "deleted"  # a step leaves the list by one rename into this folder before its files go
policies = ocp.checkpoint_managers


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What a run knows beside its arrays. The data pipeline needs nothing but the step."""

    step: int
    tokens: int
    """Target tokens of all steps so far."""


class Checkpoints:
    """The checkpoints of one run directory; every process of the run calls every method."""

    def __init__(self, folder: epath.Path, config: CheckpointConfig):
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(config.keep_latest),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics["loss"],
                        reverse=True,
                        n=config.keep_best,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            todelete_subdir=DELETED,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)
        self._remove_deleted()

    def save(self, state: Any, progress: Progress, evaluation: dict[str, float] | None) -> None:
        """Starts a save; only the copy to host memory is waited for. `evaluation["loss"]` ranks the best."""
        arrays = layout.flatten(state)
        facts = {"progress": vars(progress), "arrays": layout.describe(arrays)}
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(layout.nest(arrays)), facts=ocp.args.JsonSave(facts)),
            metrics=evaluation and {"loss": evaluation["loss"]},
        )

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        return [s for s in sorted(self._manager.all_steps(read=True)) if is_finished(self.folder / str(s))]

    def restore(self, abstract: Any, step: int) -> tuple[Any, Progress]:
        """The state of a step on the layout of `abstract`, whatever mesh wrote it.

        Raises UserError naming every array whose name, shape or type differs from `abstract`.
        """
        arrays = layout.flatten(abstract)
        facts = read_facts(self.folder / str(step))
        layout.require_same(facts["arrays"], layout.describe(arrays), f"checkpoint {step}")
        target = layout.nest(arrays)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(target, restore_args=ocp.checkpoint_utils.construct_restore_args(target))
            ),
        )
        return layout.unflatten(abstract, restored["state"]), Progress(**facts["progress"])

    def wait(self) -> None:
        """Until the last save is on disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
        self._remove_deleted()

    def _remove_deleted(self) -> None:
        deleted = self.folder / DELETED
        if jax.process_index() == 0 and deleted.exists():
            deleted.rmtree(missing_ok=True)


def is_finished(step: epath.Path) -> bool:
    """An interrupted save, an empty folder and a half-deleted step are not."""
    return (
        (step / "_CHECKPOINT_METADATA").exists()
        and (step / "facts" / "metadata").exists()
        and (step / "state").exists()
    )


def latest(folder: epath.Path) -> int | None:
    """The newest finished checkpoint of a run, without opening any array."""
    if not folder.exists():
        return None
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit() and is_finished(p)]
    return max(steps, default=None)


def read_facts(step: epath.Path) -> dict[str, Any]:
    try:
        return json.loads((step / "facts" / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"checkpoint {step.name} is damaged ({type(error).__name__} in its facts), expected what a save wrote; "
            f"remove {step}"
        ) from None


def read_part(step: epath.Path, abstract: Any) -> Any:
    """Only the arrays that `abstract` names, on its layout. Raises UserError where they differ from what was saved."""
    arrays = layout.flatten(abstract)
    stored = {name: shape for name, shape in read_facts(step)["arrays"].items() if name.split("/")[0] in abstract}
    layout.require_same(stored, layout.describe(arrays), f"checkpoint {step.name}")
    target = layout.nest(arrays)
    with ocp.PyTreeCheckpointer() as reader:
        args = ocp.args.PyTreeRestore(
            target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
        )
        return layout.unflatten(abstract, reader.restore((step / "state").resolve(), args=args))


def verify(step: epath.Path) -> list[str]:
    """What is wrong with a checkpoint: missing pieces and arrays that cannot be read, each in one line."""
    if not is_finished(step):
        return [f"{step.name}: unfinished, it lacks its state, its facts or its commit mark"]
    try:
        facts = read_facts(step)
    except UserError as error:
        return list(error.problems)
    try:
        with ocp.PyTreeCheckpointer() as reader:
            path = (step / "state").resolve()
            whole = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree
            )
            arrays = layout.unnest(reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=whole)))
    except Exception as error:  # whatever Orbax and TensorStore raise on damaged files
        return [f"{step.name}: cannot be read ({type(error).__name__}: {str(error).splitlines()[0][:120]})"]
    return layout.differences(facts["arrays"], layout.describe(arrays))
