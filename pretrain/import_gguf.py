"""A model of llama.cpp as a run: `pretrain import FILE.gguf`."""

import os
from pathlib import Path
from typing import Any

from pretrain import exchange
from pretrain.data.tokenizer_gguf import tokenizer_of
from pretrain.models import tree
from pretrain.models.convert import gguf, gguf_file


def import_gguf(path: str | os.PathLike, run: str | os.PathLike) -> dict[str, Any]:
    """Writes the model and tokenizer of a GGUF file as `run`, dequantised to f32; returns what `import_folder` does,
    compared with what `transformers` reads from the new folder. Raises UserError.
    """
    path = Path(path)
    file = gguf_file.read(path)
    _, model = gguf.load(file, path)
    found = tokenizer_of(file.metadata, str(path))
    writer = exchange.tokenizer_writer(*found) if found else None
    length = file.metadata.get(f"{file.metadata['general.architecture']}.context_length")
    exchange.export_model(model, writer, run, length=length, card={"imported from": path.name})
    report = exchange.compared(Path(run), Path(run), model)
    return {"run": os.fspath(run), "parameters": tree.size(model), **report}
