"""Vocabularies in the Hugging Face `tokenizer.json` format."""

import base64
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain import untrusted
from pretrain.data.tokenizer import (
    LARGEST_FILE,
    MOST_GROWTH,
    MOST_TOKENS,
    longest_replacement,
    without_surrogates,
)
from pretrain.errors import UserError

KNOWN = {  # names to try where no tokenizer_config.json says which token has which role
    "bos_token": ("<s>", "<|begin_of_text|>", "<bos>", "[CLS]", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<eos>", "[SEP]", "<|endoftext|>"),
    "pad_token": ("<pad>", "[PAD]"),
    "unk_token": ("<unk>", "[UNK]"),
}


class HFTokenizer:
    def __init__(self, content: str, roles: dict[str, str], model: Any = None):
        """`content`: the text of tokenizer.json; `roles`: e.g. {"eos_token": "</s>"}; `model`: read from it already."""
        import tokenizers

        self.content, self.roles = content, roles
        self._model = model = tokenizers.Tokenizer.from_str(content) if model is None else model
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True  # text that spells a special token is text
        canonical = json.dumps([json.loads(content), roles], sort_keys=True)
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()
        self.vocab_size = max(model.get_vocab(with_added_tokens=True).values()) + 1
        ids = (model.token_to_id(roles[role]) if role in roles else None for role in KNOWN)
        self.bos, self.eos, self.pad, self.unk = ids
        added = model.get_added_tokens_decoder().items()
        self._special = {i: token.content for i, token in added if token.special and i != self.unk}
        self.specials = {content: i for i, content in sorted(self._special.items())}

    def __reduce__(self):
        return HFTokenizer, (self.content, self.roles)

    @classmethod
    def load(cls, path: Path) -> "HFTokenizer":
        import tokenizers

        try:
            content = untrusted.read(path, LARGEST_FILE).decode("utf-8")
            if said := content.strip() and bomb(untrusted.loads(content)):
                raise ValueError(said)
            model = tokenizers.Tokenizer.from_str(content)
            return cls(content, _roles(path.parent, model), model)
        except UserError:
            raise
        except BaseException as e:  # the binding raises bare Exception, and a panic of Rust is not even that
            if not is_refusal(e):
                raise
            reason = untrusted.reason(e, 200)
            raise UserError(f"found no tokenizer in {path} ({reason}), expected a tokenizer.json; copy it anew") from e

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        found = self._ids([without_surrogates(t) for t in texts])
        return [ids if self._special.keys().isdisjoint(ids) else self._apart(t) for ids, t in zip(found, texts)]

    def _apart(self, text: str) -> list[int]:
        """A unigram model finds its own special tokens in text: cut each after its first character."""
        spelled = "|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in self._special.values() if s[1:])
        parts = re.split(spelled, without_surrogates(text))
        return [i for ids in self._ids(parts) for i in ids if i not in self._special]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        try:
            return [e.ids for e in self._model.encode_batch_fast(texts, add_special_tokens=False)]  # each access copies
        except BaseException as e:
            if not is_refusal(e):
                raise
            reason = untrusted.reason(e)
            raise UserError(f"the tokenizer cannot encode a text ({reason}), expected ids; use another one") from None

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(list(ids), skip_special_tokens=True)

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        table = self._bytes
        return b"".join(table(int(i)) for i in ids)

    @functools.cached_property
    def _bytes(self):
        """id -> bytes, by the decoder that the file declares."""
        declared = json.loads(self._model.to_str())["decoder"]
        decoder, is_wordpiece = json.dumps(declared), bool(declared) and declared["type"] == "WordPiece"
        prefix = declared["prefix"] if declared and is_wordpiece else None
        alphabet = _byte_level_alphabet()

        @functools.cache
        def look_up(i: int) -> bytes:
            piece = self._model.id_to_token(i)
            if i in self._special or i == self.unk or piece is None:
                return b""
            if '"ByteLevel"' in decoder and all(c in alphabet for c in piece):
                return bytes(alphabet[c] for c in piece)
            if '"ByteFallback"' in decoder and re.fullmatch("<0x[0-9A-F]{2}>", piece):
                return bytes([int(piece[3:5], 16)])
            if prefix is not None:
                return piece.removeprefix(prefix).encode() if piece.startswith(prefix) else f" {piece}".encode()
            if "\u2581" in decoder:
                return piece.replace("\u2581", " ").encode()
            return piece.encode() if '"ByteFallback"' in decoder else self._model.decode([i]).encode()

        return look_up

    def save(self, folder: str | os.PathLike) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "tokenizer.json").write_text(self.content, encoding="utf-8")
        text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **self.roles}, indent=2)
        (Path(folder) / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


def _roles(folder: Path, model: Any) -> dict[str, str]:
    """Which token has which role: as the folder says, else by its usual name."""
    roles, stated = {}, _stated_roles(folder)
    for role, names in KNOWN.items():
        for name in (stated[role],) if stated.get(role) else names:
            if model.token_to_id(name) is not None:
                roles.setdefault(role, name)
    return roles


def is_refusal(error: BaseException) -> bool:
    """Whether it is the file's fault, as the binding says it."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def bomb(content: Any) -> str:
    """How a tokenizer.json would fill the memory, or "": by numbers of tokens, or by texts that grow."""
    if not isinstance(content, dict):
        return "no object"
    vocabulary, added = (content.get("model") or {}).get("vocab"), content.get("added_tokens") or ()
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary or ()))
    ids = [*ids, *(token.get("id") for token in added)]
    if wrong := [i for i in ids if type(i) is not int or not 0 <= i < MOST_TOKENS]:
        return f"a token has the number {repr(wrong[0])[:40]}, expected at most {MOST_TOKENS}"
    for name in ("normalizer", "decoder"):
        if (times := _growth(content.get(name))) > MOST_GROWTH:
            return f"its {name} makes a text {times:.3g} times as long, expected at most {MOST_GROWTH}"
    return ""


def _growth(step: Any) -> float:
    """Times that a step can make a text longer."""
    match step:
        case {"type": "Sequence"}:
            return math.prod(_growth(s) for s in step.get("normalizers") or step.get("decoders") or ())
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return max(1.0, len(new) / len(old))
        case {"type": "Replace", "content": str(new)} | {"type": "Prepend", "prepend": str(new)}:
            return 1.0 + len(new)
        case {"type": "Precompiled", "precompiled_charsmap": str(packed)}:
            return max(1.0, longest_replacement(base64.b64decode(packed)))
    return 1.0


def _stated_roles(folder: Path) -> dict[str, str]:
    """Roles from the files beside tokenizer.json; a token is a string or {"content": string}."""
    roles = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            stated = untrusted.load(untrusted.inside(folder, name))
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as e:
            reason = untrusted.reason(e)
            raise UserError(f"found broken JSON in {folder / name} ({reason}), expected an object; copy it") from None
        if not isinstance(stated, dict):
            raise UserError(f"found no object in {folder / name}, expected one of tokens by role; copy it anew")
        for role in KNOWN:
            token = stated.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            if token and not isinstance(token, str):
                found = repr(token)[:40]
                raise UserError(f"{folder / name}: {role} is {found}, expected the text of a token; correct it")
            if token:
                roles[role] = token
    return roles


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}
