"""A small byte-level vocabulary, and how it stands in a GGUF file."""

import json
from pathlib import Path

TEXT = "def capital(of):\n    return {'France': 'Paris', 'Ω': 1234567}[of]  # naïve  \n\n\nx = 'it''s'\n"


def trained():
    """A byte-level BPE as SmolLM2's, trained on a few lines."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    out = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    out.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    out.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    out.train_from_iterator([Path(json.__file__).read_text(), TEXT], trainer)
    return out


def vocabulary(bpe) -> dict:
    model = json.loads(bpe.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    }
