from dataclasses import dataclass
from typing import Literal

from pretrain.cli import arguments, output, runs


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a run in the Hugging Face layout: config.json, safetensors, tokenizer, model card.

    examples:
      pretrain export smoke --to exported/
      pretrain export smoke --to exported/ --dtype bfloat16 --step 40
      pretrain export smoke --to exported/ --check --json      reloads and compares bytes and logits
    """

    run: arguments.Run
    to: str
    """A new folder."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    check: bool = False
    """Reload what was written, and compare its logits, with transformers where it is installed."""
    step: int | None = None
    """Of the checkpoint. Default: the latest."""
    json: arguments.Json = False

    def __call__(self) -> None:
        run = runs.find(self.run)
        folder = runs.must_be_new(self.to)
        from pretrain.exchange import export_run
        from pretrain.opened import open_run

        opened = open_run(run, step=self.step)
        output.show(export_run(opened, folder, dtype=self.dtype, check=self.check), self.json)


COMMAND = Export
