import os
import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pretrain import presets
from pretrain.cli import arguments, output
from pretrain.config import RunConfig
from pretrain.errors import UserError

if TYPE_CHECKING:
    from pretrain.plan.chips import Slice


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Does it fit, how fast is it, what would help: the real training step, compiled for chips that are not here.

    examples:
      pretrain plan runs.pretrain_llama_1b --on v5p-128
      pretrain plan runs.pretrain_llama_1b --on v5e:4x4 --batch.rows 64 --quick     by arithmetic, in seconds
      pretrain plan llama.llama2_7b --batch 256 --sequence 4096 --on v5p:4x4x4 --rules fsdp
      pretrain plan runs.pretrain_llama_1b --on v5p-128 --search --compiles 6       mesh x remat x micro-batches
      pretrain plan runs.pretrain_llama2_7b --on h100:64                            GPUs need pretrain[cuda]
    """

    config: arguments.Config
    on: str
    """A slice: v5p-128 (the vendor's name), v5p:4x4x4, v5e:16, h100:16; of v4 v5e v5p v6e tpu7x h100 h200 b200."""
    batch: int | None = None
    """Rows of the global batch, for a model without a run."""
    sequence: int | None = None
    """Tokens of a row, for a model without a run."""
    quick: bool = False
    """Arithmetic only: no compiler, seconds instead of minutes."""
    search: bool = False
    """Try meshes, rematerialisation and micro-batches."""
    compiles: int = 4
    """At most so many in a search."""
    save: str | None = None
    """Keep the compiled step of a TPU in this file."""
    page: str | None = None
    """Write the plan to this file as Markdown."""
    compiler_option: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Of the chip's compiler, as xla_tpu_enable_latency_hiding_scheduler=true."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        os.environ["JAX_PLATFORMS"] = "cpu"  # a plan takes no chip from whoever works on this machine
        from pretrain.plan import chips, report
        from pretrain.plan.plan import plan

        if self.compiles < 1:
            raise UserError(f"compiles={self.compiles}: expected 1 or more")
        on, config = chips.parse(self.on), self._config()
        if self.search and (unread := [n for n in ("save", "page", "compiler_option") if getattr(self, n)]):
            raise UserError(*(f"{n}: of a single plan, found --search too; leave one of them out" for n in unread))
        if self.search:
            from pretrain.plan.search import search

            rows = search(config, on, compiles=self.compiles, quick=self.quick)
            if not rows:
                raise UserError(f"on={self.on}: found no mesh that may fit, expected some; choose a larger slice")
            output.show({"on": on.vendor, "rows": rows}, self.json, report.table(rows))
            return
        found = plan(config, on, quick=self.quick, options=self._options(), save=self.save)
        if self.page is not None:
            with open(self.page, "w") as file:
                file.write(report.page(self.config, _command(), found, _versions(on, self.quick)))
        output.show(found, self.json, report.lines(self.config, found))

    def _config(self) -> RunConfig:
        from pretrain.plan.plan import run_of

        preset = presets.load(self.config)
        if not isinstance(preset, RunConfig):
            if self.batch is None or self.sequence is None:
                raise UserError(
                    f"{self.config} is a model without a run, expected its batch; add --batch ROWS --sequence LENGTH"
                )
            preset = run_of(preset, self.batch, self.sequence)
        elif self.batch is not None or self.sequence is not None:
            raise UserError(
                f"{self.config} is a run with a batch of its own; use --batch.rows and --data.sequence-length"
            )
        return presets.overrides(preset, self.overrides, ("on", "batch", "sequence", "quick", "search", "save"))

    def _options(self) -> dict[str, bool | str]:
        wrong = [o for o in self.compiler_option if "=" not in o]
        if wrong:
            raise UserError(*(f"compiler_option={o}: expected NAME=VALUE; write {o}=true" for o in wrong))
        pairs = dict(o.split("=", 1) for o in self.compiler_option)
        return {k: v.lower() == "true" if v.lower() in ("true", "false") else v for k, v in pairs.items()}


def _command() -> str:
    words = [w for w in sys.argv[1:] if w != "--debug"]
    if "--page" in words:
        at = words.index("--page")
        words = words[:at] + words[at + 2 :]
    return shlex.join(["pretrain", *words])


def _versions(on: "Slice", quick: bool) -> str:
    from importlib.metadata import version

    from pretrain.plan.compiler import PARTS

    parts = () if quick else PARTS[on.described["platform"]]
    return ", ".join(f"{name} {version(name)}" for name in ("jax", *parts))


COMMAND = Plan
