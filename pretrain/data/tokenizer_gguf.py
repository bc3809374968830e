"""Vocabularies that come inside a GGUF file, as the tokenizers that the rest of the system knows."""

from collections.abc import Mapping
from typing import Any

from pretrain import untrusted
from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_hf import HFTokenizer, is_refusal
from pretrain.data.tokenizer_sentencepiece import SentencePieceTokenizer
from pretrain.errors import UserError

KEY = "tokenizer.ggml."
UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""Kinds of tokens, numbered as in sentencepiece."""
ROLES = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_SHORT}|{_WORD}|\p{{N}}|{_REST}",
    "tekken": rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""Where a text is cut before merges, by llama.cpp's name for it: the published patterns of GPT-2 (None: the library's
own), SmolLM (every digit by itself), Llama 3, Qwen 2 and Mistral Nemo."""
WHOLE = ("llama-bpe", "tekken")
"""A word that is in the vocabulary is one token, whatever the merges."""


def tokenizer_of(metadata: Mapping[str, Any], where: str) -> tuple[Tokenizer, bool] | None:
    """The tokenizer, and whether a text begins with bos; None where there is none. Raises UserError."""
    kind, tokens = metadata.get(f"{KEY}model"), metadata.get(f"{KEY}tokens")
    if kind is None or kind == "none":
        return None
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{where}: {KEY}model is {repr(kind)[:40]}, expected gpt2 or llama; import another file")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) for t in tokens):
        raise UserError(f"{where}: found no list of strings in {KEY}tokens; copy the file again")
    types = metadata.get(f"{KEY}token_type", [1] * len(tokens))
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError(f"{where}: {KEY}token_type does not have {len(tokens)} numbers; copy the file again")
    ids = {}
    for theirs, role in ROLES.items():
        i = metadata.get(f"{KEY}{theirs}_token_id")
        if i is not None and (type(i) is not int or not 0 <= i < len(tokens)):
            raise UserError(f"{where}: {KEY}{theirs}_token_id is {repr(i)[:40]}, expected one of {len(tokens)} tokens")
        ids |= {} if i is None else {role: i}
    try:
        made = (_bpe if kind == "gpt2" else _sentencepiece)(metadata, tokens, types, ids, where)
    except UserError:
        raise
    except BaseException as error:  # the bindings raise bare Exception, and a panic of Rust is not even that
        if not is_refusal(error):
            raise
        reason = untrusted.reason(error)
        raise UserError(f"{where}: its vocabulary makes no tokenizer ({reason}); copy the file again") from None
    return made, bool(metadata.get(f"{KEY}add_bos_token", kind == "llama"))


def _bpe(metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: dict[str, int], where: str):
    """Byte-level BPE, GPT-2's and its descendants'."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pre, merges = metadata.get(f"{KEY}pre", "gpt-2"), metadata.get(f"{KEY}merges", [])
    if not isinstance(pre, str) or pre not in SPLITS:
        raise UserError(
            f"{where}: {KEY}pre is {repr(pre)[:40]}, expected one of {', '.join(SPLITS)}; "
            "import the model in the Hugging Face layout"
        )
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise UserError(f"{where}: {KEY}tokens has one token twice; copy the file again")
    pairs = [tuple(str(merge).split(" ", 1)) for merge in merges]
    out = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in WHOLE))  # type: ignore
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=SPLITS[pre] is None)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    steps += [pre_tokenizers.Split(tokenizers.Regex(SPLITS[pre]), "isolated")] if SPLITS[pre] else []
    out.pre_tokenizer = pre_tokenizers.Sequence([*steps, level])
    out.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        out.normalizer = normalizers.NFC()
    added = [
        tokenizers.AddedToken(token, special=kind == CONTROL, normalized=False)
        for token, kind in zip(tokens, types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    out.add_tokens(added)
    return HFTokenizer(out.to_str(), {role: tokens[i] for role, i in ids.items()})


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: dict[str, int], where: str):
    """The model that llama.cpp's converter took apart: BPE whose merges are ranked by scores, with bytes."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]

    scores = metadata.get(f"{KEY}scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise UserError(f"{where}: {KEY}scores does not have {len(tokens)} numbers; copy the file again")
    proto = ModelProto()
    for token, score, kind in zip(tokens, scores, types):
        proto.pieces.add(piece=token, score=float(score), type=kind)
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = spec.BPE, len(tokens), BYTE in types
    for role in ("unk", "bos", "eos", "pad"):
        i = ids.get(f"{role}_token", types.index(UNKNOWN) if role == "unk" and UNKNOWN in types else -1)
        setattr(spec, f"{role}_id", i)
        if i >= 0:
            setattr(spec, f"{role}_piece", tokens[i])
    rules = proto.normalizer_spec
    rules.name = "identity"
    rules.add_dummy_prefix = bool(metadata.get(f"{KEY}add_space_prefix", True))
    rules.remove_extra_whitespaces = bool(metadata.get(f"{KEY}remove_extra_whitespaces", False))
    rules.precompiled_charsmap = bytes(b & 255 for b in metadata.get(f"{KEY}precompiled_charsmap", []))
    return SentencePieceTokenizer(proto.SerializeToString(deterministic=True))
