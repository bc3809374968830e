"""SentencePiece vocabularies: use, and training on a bounded sample."""

import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pretrain import untrusted
from pretrain.data.config import TrainSentencePiece
from pretrain.data.tokenizer import LARGEST_FILE, MOST_GROWTH, MOST_TOKENS, longest_replacement, without_surrogates
from pretrain.errors import UserError

MARK = "\u2581"  # sentencepiece's spelling of a space; in text it is a character like any other
CHUNK = 1000  # characters encoded at a time: sentencepiece's BPE is twice as fast on these as on whole documents
LONGEST = 1 << 20  # characters without a place to cut, after which the text is cut anyway: memory stays bounded
THREADS = 4  # fixed, because unigram training adds its floating point sums up by thread
SCORE_UNIT = 64  # see _round_scores
_CUT = re.compile("[^ ](?= )")


class SentencePieceTokenizer:
    """Exact on every text when the model has byte fallback and no normalisation, as those that we train have.

    Such a text is cut at spaces, where no piece of the vocabulary reaches across, and U+2581 is spelled in bytes:
    sentencepiece alone would turn it into a space.
    """

    def __init__(self, content: bytes):
        import sentencepiece
        from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]

        self.content = content
        self.proto = ModelProto.FromString(content)
        times = longest_replacement(self.proto.normalizer_spec.precompiled_charsmap)
        if not 0 < len(self.proto.pieces) <= MOST_TOKENS or times > MOST_GROWTH:
            raise ValueError(f"found {len(self.proto.pieces)} tokens and texts that grow {times} times")
        self._model = model = sentencepiece.SentencePieceProcessor(model_proto=content)
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = model.vocab_size()
        special = (model.bos_id(), model.eos_id(), model.pad_id(), model.unk_id())
        self.bos, self.eos, self.pad, self.unk = (i if i >= 0 else None for i in special)
        rules = self.proto.normalizer_spec
        verbatim = not (rules.precompiled_charsmap or rules.add_dummy_prefix or rules.remove_extra_whitespaces)
        self.exact = verbatim and self.proto.trainer_spec.byte_fallback and not self._a_piece_crosses_a_cut()
        self._mark = [model.piece_to_id(f"<0x{b:02X}>") for b in MARK.encode()] if self.exact else []
        self._bytes = [self._bytes_of_piece(p) for p in self.proto.pieces]
        self.specials = {p.piece: i for i, p in enumerate(self.proto.pieces) if p.type == type(p).CONTROL}

    def __reduce__(self):
        return SentencePieceTokenizer, (self.content,)

    @classmethod
    def load(cls, path: Path) -> "SentencePieceTokenizer":
        from google.protobuf.message import DecodeError

        try:
            return cls(untrusted.read(path, LARGEST_FILE))
        except (RuntimeError, DecodeError, ValueError, OSError):
            raise UserError(f"found no sentencepiece model in {path}, expected one; copy it anew") from None

    def _a_piece_crosses_a_cut(self) -> bool:
        return any(MARK in p.piece.lstrip(MARK) for p in self.proto.pieces)

    def _bytes_of_piece(self, piece) -> bytes:
        kinds = type(piece)
        if piece.type == kinds.BYTE:
            return bytes([int(piece.piece[3:5], 16)])
        if piece.type in (kinds.CONTROL, kinds.UNKNOWN):
            return b""
        return piece.piece.replace(MARK, " ").encode()

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        texts = [without_surrogates(text) for text in texts]
        if not self.exact:
            return self._model.encode(texts, num_threads=1)
        chunks = [list(cut(text)) for text in texts]
        encoded = iter(self._model.encode([c for cs in chunks for c in cs if c != MARK], num_threads=1))
        join = itertools.chain.from_iterable
        return [list(join(self._mark if c == MARK else next(encoded) for c in cs)) for cs in chunks]

    def decode(self, ids: Sequence[int]) -> str:
        text = self.bytes_of(ids).decode("utf-8", "replace")
        return text[1:] if self.proto.normalizer_spec.add_dummy_prefix and text.startswith(" ") else text

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._bytes[i] for i in ids)

    def save(self, folder: str | os.PathLike) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "tokenizer.model").write_bytes(self.content)


def cut(text: str) -> Iterator[str]:
    """`text` in parts of about CHUNK characters that begin with spaces; U+2581 is a part of its own."""
    for plain in re.split(f"({MARK})", text) if MARK in text else (text,):
        start = 0
        while start < len(plain):
            match = _CUT.search(plain, start + CHUNK, start + LONGEST)
            end = match.end() if match else start + LONGEST
            yield plain[start:end]
            start = end


def train_sentencepiece(texts: Iterable[str], config: TrainSentencePiece, folder: str | os.PathLike):
    """Trains on all of `texts` (see `sample`), writes `folder/tokenizer.model`; the same texts give the same bytes.

    Ids: 0 unk, 1 bos, 2 eos, 3 pad, then `special_tokens`.
    """
    import sentencepiece

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=out,
            model_type=config.kind,
            vocab_size=config.vocab_size,
            byte_fallback=config.byte_fallback,
            split_digits=config.split_digits,
            character_coverage=config.character_coverage,
            control_symbols=list(config.special_tokens),
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            required_chars="".join(map(chr, range(33, 127))) + "\n\t",
            max_sentence_length=1 << 30,
            pad_id=3,
            num_threads=THREADS,
            minloglevel=2,
        )
    except RuntimeError as e:
        raise _training_error(e, config) from None
    content = _round_scores(out.getvalue()) if config.kind == "unigram" else out.getvalue()
    tokenizer = SentencePieceTokenizer(content)
    tokenizer.save(folder)
    return tokenizer


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    # The trainer drops every sentence that holds a tab, a NUL or U+2585, its own marks; a tab is a piece all the same.
    for text in texts:
        for chunk in cut(without_surrogates(text)):
            yield from filter(None, re.split("[\t\0\u2585\u2581]", chunk))


def _round_scores(content: bytes) -> bytes:
    """Scores of a unigram model as multiples of 1/64 nat.

    Sums of these are exact in float32 and float64 alike, so that equally good segmentations tie everywhere and an
    exported tokenizer breaks the tie as sentencepiece does. The original scores differ by rounding, depending on
    where in the text a run of equal characters stands.
    """
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue]

    proto = ModelProto.FromString(content)
    for piece in proto.pieces:
        piece.score = round(piece.score * SCORE_UNIT) / SCORE_UNIT
    return proto.SerializeToString(deterministic=True)


def _training_error(error: RuntimeError, config: TrainSentencePiece) -> UserError:
    reason = " ".join(str(error).split())
    if match := re.search(r"set it to a value <= (\d+)", reason):
        message = f"found too little text for tokenizer.vocab_size={config.vocab_size}, expected at most {match[1]}"
        return UserError(f"{message}; lower it or add text")
    if match := re.search(r"Vocabulary size is smaller than required_chars.*?(\d+) vs (\d+)", reason):
        message = f"found tokenizer.vocab_size={config.vocab_size}, expected at least {match[2]} for this text"
        return UserError(f"{message}; raise it or lower character_coverage")
    return UserError(f"found that sentencepiece refused the text ({reason}), expected trainable text; inspect it")


def sample(texts: Iterable[str], size: int) -> list[str]:
    """Texts of at most `size` UTF-8 bytes in total: those whose hashes are the smallest, so uniform over the corpus.

    Memory is bounded by `size`; the order of `texts` does not matter. Each text counts for `size // 8` bytes at most.
    """
    import heapq

    heap: list[tuple[int, str]] = []  # the largest hash on top: it leaves first
    total, seen = 0, set()
    for text in texts:
        text = text.encode()[: size // 8].decode("utf-8", "ignore")
        data = text.encode()
        rank = -int.from_bytes(hashlib.blake2b(data, digest_size=8, person=b"sample").digest(), "big")
        if rank in seen or (total >= size and rank < heap[0][0]):
            continue
        seen.add(rank)
        heapq.heappush(heap, (rank, text))
        total += len(data)
        while total > size:
            rank, text = heapq.heappop(heap)
            seen.discard(rank)
            total -= len(text.encode())
    return [text for _, text in sorted(heap, reverse=True)]
