from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Import:
    """Make a run of a Hugging Face folder, to train on, evaluate or export. Nothing in the folder is executed.

    examples:
      pretrain import models/SmolLM2-135M --run runs/smollm2
      pretrain import models/gpt2 --run runs/gpt2 --json
    """

    folder: Positional[str]
    """With config.json, *.safetensors and a tokenizer."""
    run: str
    """A new run directory."""
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
