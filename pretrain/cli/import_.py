from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Import:
    """Read a Hugging Face folder or a GGUF file, compare its logits with transformers, and write a folder.

    The new folder has no run.json, data or training state: generate, chat, export and --start-from take it, while
    train and evaluate need a run that starts from it. Nothing in the folder is executed.

    examples:
      pretrain import models/SmolLM2-135M --run runs/smollm2
      pretrain import models/gpt2 --run runs/gpt2 --json
      pretrain import SmolLM2-135M-Instruct.Q4_1.gguf --run runs/smollm2
      pretrain train my_run.py --start-from runs/smollm2     where my_run.py has the same model
    """

    folder: Positional[str]
    """With config.json, *.safetensors and a tokenizer; or a .gguf file."""
    run: str
    """A new folder for the model."""
    json: arguments.Json = False

    def __call__(self) -> None:
        source = Path(self.folder)
        quantised = source.suffix == ".gguf" and source.is_file()
        if not source.is_dir() and not quantised:
            found = "a file" if source.exists() else "nothing"
            raise UserError(
                f"{self.folder}: found {found}, expected a folder with config.json or a GGUF file; name one of them"
            )
        run = runs.must_be_new(self.run)
        from etils import epath

        if quantised:
            from pretrain.import_gguf import import_gguf as read
        else:
            from pretrain.exchange import import_folder as read
        output.show(read(source, epath.Path(run)), self.json)


COMMAND = Import
