"""A tokenizer in the Hugging Face layout, with the same ids for every text."""

import json
import os
from pathlib import Path

from pretrain.data.tokenizer import Tokenizer
from pretrain.data.tokenizer_hf import HFTokenizer
from pretrain.data.tokenizer_sentencepiece import MARK, SentencePieceTokenizer

BYTE_SCORE = -1024.0  # in nats; far below any spelling of "<0x41>" by its characters

ENCODERS = {"mask_token": ("[MASK]", "<mask>"), "cls_token": ("[CLS]",), "sep_token": ("[SEP]",)}
"""Roles that an encoder's vocabulary has, and their usual names."""


def to_hf(tokenizer: Tokenizer, folder: str | os.PathLike, *, add_bos: bool = False, types: bool = False) -> None:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and, for sentencepiece, tokenizer.model.
    `types`: of a pair of texts, tokens of the second are of another type.

    As usual there, text that spells a special token becomes that token unless `split_special_tokens=True` is given.
    """
    folder = Path(folder)
    tokenizer.save(folder)
    if isinstance(tokenizer, SentencePieceTokenizer):
        pieces = [p.piece for p in tokenizer.proto.pieces]
        ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad, "unk": tokenizer.unk}
        roles = {f"{role}_token": pieces[i] for role, i in ids.items() if i is not None}
        _from_sentencepiece(tokenizer, add_bos).save(str(folder / "tokenizer.json"))
    elif isinstance(tokenizer, HFTokenizer):
        roles = tokenizer.roles
    else:
        raise TypeError(f"no Hugging Face layout for {type(tokenizer).__name__}")
    roles = roles | {role: n for role, names in ENCODERS.items() for n in names if n in tokenizer.specials}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": add_bos,
        **roles,
        **({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if types else {}),
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", roles)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _from_sentencepiece(tokenizer: SentencePieceTokenizer, add_bos: bool):
    """The same vocabulary as a `tokenizers.Tokenizer`.

    An exact tokenizer's pieces are spelled with real spaces, so that U+2581 in text stays an unknown character and
    falls back to bytes; otherwise with U+2581, as sentencepiece spells them.
    """
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    space = " " if tokenizer.exact else MARK
    rules = tokenizer.proto.normalizer_spec
    out = tokenizers.Tokenizer(_unigram(tokenizer, space) if _is_unigram(tokenizer) else _bpe(tokenizer, space))
    if tokenizer.exact:
        # No piece reaches across the beginning of a run of spaces: parts are short and their ids are cached.
        out.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(" +[^ ]*|[^ ]+"), "isolated")
        out.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    else:
        steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
        if rules.remove_extra_whitespaces:
            steps += [normalizers.Strip(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
        steps += [normalizers.Prepend(MARK)] if rules.add_dummy_prefix else []
        out.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", MARK)])
        undo = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
        out.decoder = decoders.Sequence(undo + ([decoders.Strip(" ", left=1)] if rules.add_dummy_prefix else []))
    pieces = tokenizer.proto.pieces
    special = [p.piece for p in pieces if p.type in (type(p).CONTROL, type(p).UNKNOWN)]
    out.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False) for s in special])
    if add_bos and tokenizer.bos is not None:
        bos = pieces[tokenizer.bos].piece
        template = {"single": f"{bos} $A", "pair": f"{bos} $A {bos}:1 $B:1"}
        out.post_processor = processors.TemplateProcessing(**template, special_tokens=[(bos, tokenizer.bos)])
    return out


def _is_unigram(tokenizer: SentencePieceTokenizer) -> bool:
    spec = tokenizer.proto.trainer_spec
    return spec.model_type == spec.UNIGRAM


def _bpe(tokenizer: SentencePieceTokenizer, space: str):
    """Merges best first; a piece that two pairs can make has one merge for each."""
    from tokenizers import models

    pieces = tokenizer.proto.pieces
    spelled = [p.piece.replace(MARK, space) if p.type == type(p).NORMAL else p.piece for p in pieces]
    normal = {s: p.score for s, p in zip(spelled, pieces) if p.type == type(p).NORMAL}
    merges = []
    for piece in sorted(normal, key=lambda s: -normal[s]):
        pairs = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += [pair for pair in pairs if pair[0] in normal and pair[1] in normal]
    return models.BPE(
        vocab={s: i for i, s in enumerate(spelled)},
        merges=merges,
        unk_token=None if tokenizer.unk is None else spelled[tokenizer.unk],
        fuse_unk=True,
        byte_fallback=tokenizer.proto.trainer_spec.byte_fallback,
    )


def _unigram(tokenizer: SentencePieceTokenizer, space: str):
    from tokenizers import models

    vocabulary = []
    for p in tokenizer.proto.pieces:
        if p.type in (type(p).NORMAL, type(p).USER_DEFINED):
            vocabulary.append((p.piece.replace(MARK, space), p.score))
        else:  # the format has no piece that text cannot spell: make it the worst way to spell anything
            vocabulary.append((p.piece, BYTE_SCORE))
    return models.Unigram(vocabulary, tokenizer.unk, tokenizer.proto.trainer_spec.byte_fallback)
