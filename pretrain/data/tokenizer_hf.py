"""Vocabularies in the Hugging Face `tokenizer.json` format."""

import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pretrain.data.tokenizer import without_surrogates
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
            content = path.read_text(encoding="utf-8")
            model = tokenizers.Tokenizer.from_str(content)
            return cls(content, _roles(path.parent, model), model)
        except UserError:
            raise
        except Exception as e:  # the binding raises bare Exception
            reason = " ".join(str(e).split())[:200]
            raise UserError(f"found no tokenizer in {path} ({reason}), expected a tokenizer.json; copy it anew") from e

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._model.encode_batch_fast([without_surrogates(t) for t in texts], add_special_tokens=False)
        found = [e.ids for e in encoded]  # each access copies
        return [ids if self._special.keys().isdisjoint(ids) else self._apart(t) for ids, t in zip(found, texts)]

    def _apart(self, text: str) -> list[int]:
        """A unigram model finds its own special tokens in text: cut each after its first character."""
        spelled = "|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in self._special.values() if s[1:])
        parts = re.split(spelled, without_surrogates(text))
        ids = [i for p in self._model.encode_batch_fast(parts, add_special_tokens=False) for i in p.ids]
        return [i for i in ids if i not in self._special]

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


def _stated_roles(folder: Path) -> dict[str, str]:
    """Roles from the files beside tokenizer.json; a token is a string or {"content": string}."""
    roles = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            stated = json.loads((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as e:
            raise UserError(f"found broken JSON in {folder / name} ({e}), expected an object; copy it anew") from None
        for role in KNOWN:
            token = stated.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            if token:
                roles[role] = token
    return roles


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}
