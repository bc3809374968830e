from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Import:
    """Read a Hugging Face folder, compare its logits with transformers, and write it again in that layout.

    The new folder has no run.json, data or training state: generate, chat, export and --start-from take it, while
    train and evaluate need a run that starts from it. Nothing in the folder is executed.

    examples:
      pretrain import models/SmolLM2-135M --run runs/smollm2
      pretrain import models/gpt2 --run runs/gpt2 --json
      pretrain train my_run.py --start-from runs/smollm2     where my_run.py has the same model
    """

    folder: Positional[str]
    """With config.json, *.safetensors and a tokenizer."""
    run: str
    """A new folder for the model."""
    json: arguments.Json = False

    def __call__(self) -> None:
        folder = Path(self.folder)
        if not folder.is_dir():
            found = "a file" if folder.exists() else "nothing"
            raise UserError(f"{self.folder}: found {found}, expected a folder with config.json; name the folder")
        run = runs.must_be_new(self.run)
        from etils import epath

        from pretrain.exchange import import_folder

        output.show(import_folder(folder, epath.Path(run)), self.json)


COMMAND = Import
