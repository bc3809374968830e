"""A vocabulary of words, text in it, and every objective with a model that it fits."""

from dataclasses import dataclass, field

import numpy as np

from pretrain.data.draws import Draws, row_keys
from pretrain.data.rows import Raw, Transform
from pretrain.models import config as m
from pretrain.objectives import config as c
from pretrain.objectives.transforms import transform

WORDS = [" the", " cat", " sat", "ly", "ing", " on", " mat", " Who", ".", "?", ",", "\n", "東", "京", " (", ")"]
WORDS += [f" w{i}" for i in range(50)] + [f"s{i}" for i in range(30)]
NAMES = (
    *("[MASK]", "[CLS]", "[SEP]", "<mask>", "[NLU]", "[NLG]", "[S2S]", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    *(f"<extra_id_{i}>" for i in range(100)),
    *(f"<other_{i}>" for i in range(100)),
)
LENGTH = 48


@dataclass
class Words:
    """A tokenizer whose pieces are WORDS."""

    names: tuple[str, ...] = NAMES
    specials: dict[str, int] = field(init=False)
    fingerprint: str = "words"
    unk: int = 0
    bos: int = 1
    eos: int = 2
    pad: int = 3

    def __post_init__(self):
        self.specials = {name: i for i, name in enumerate(("<s>", "</s>", "<pad>", *self.names), start=1)}
        self.first = len(self.specials) + 1
        self.vocab_size = self.first + len(WORDS)

    def id(self, word: str) -> int:
        return self.first + WORDS.index(word)

    def bytes_of(self, ids) -> bytes:
        return b"".join(WORDS[i - self.first].encode() if i >= self.first else b"" for i in ids)


TOKENIZER = Words()
V = TOKENIZER.vocab_size


def documents(count: int, seed: int = 0, longest: int = 80) -> list[list[int]]:
    """Of random words, each ended by eos."""
    rng = np.random.default_rng(seed)
    return [[*rng.integers(TOKENIZER.first, V, rng.integers(1, longest)).tolist(), TOKENIZER.eos] for _ in range(count)]


def raw(room: int, rows: int = 16, seed: int = 0, longest: int = 80, others: bool = False) -> Raw:
    """Full rows of packed documents."""
    few = documents(4 + 3 * rows * room // longest, seed, longest)
    tokens, starts = np.concatenate(few), np.concatenate([np.arange(len(d)) == 0 for d in few])
    assert len(tokens) > rows * room
    at = np.arange(rows)[:, None] * room + np.arange(room + 1)
    return Raw(
        tokens=tokens[at].astype(np.int32),
        starts=starts[at],
        lengths=np.full(rows, room),
        draws=Draws(row_keys(seed, np.arange(rows), "test")),
        others=raw(room, rows, seed + 1, longest) if others else None,
    )


INIT = m.InitConfig(std=0.2)
NORM = m.NormConfig(kind="layer", bias=True)
MLP = m.MlpConfig(d_ff=24, activation="gelu", gated=False, bias=True)


def stack(causal: bool, cross: bool = False) -> m.StackConfig:
    def attention(causal: bool) -> m.AttentionConfig:
        return m.AttentionConfig(heads=2, kv_heads=2, head_dim=8, causal=causal)

    block = m.BlockConfig(
        mixer=attention(causal), cross=attention(False) if cross else None, mlp=MLP, pre=NORM, residual=None
    )
    return m.StackConfig(pattern=(block,), repeats=2, positions=m.SinusoidalPositions(), final_norm=NORM)


def decoder(**more) -> m.TransformerConfig:
    return m.TransformerConfig(vocab_size=V, d_model=16, init=INIT, decoder=stack(True), **more)


def encoder(**more) -> m.TransformerConfig:
    return m.TransformerConfig(vocab_size=V, d_model=16, init=INIT, encoder=stack(False), **more)


def both(**more) -> m.TransformerConfig:
    return m.TransformerConfig(
        vocab_size=V, d_model=16, init=INIT, encoder=stack(False), decoder=stack(True, cross=True), **more
    )


AHEAD = m.AheadConfig(depth=2, block=stack(True).pattern[0])
JUDGE = {"embed": m.EmbedConfig(types=2), "tasks": (m.TaskConfig(name="next_sentence", labels=2, hidden="tanh"),)}
REPLACED = m.TaskConfig(name="replaced", pool="token", labels=1, hidden="gelu")
GENERATOR = m.GeneratorConfig(
    d_model=8,
    encoder=m.StackConfig(pattern=stack(False).pattern, repeats=1, positions=m.SinusoidalPositions()),
    head=m.HeadConfig(tied=True, transform=m.TransformConfig()),
)
LOSS = c.LossConfig(chunk=7, z_loss=1e-3)


@dataclass(frozen=True)
class Case:
    objective: c.Objective
    model: m.TransformerConfig

    def transform(self, length: int = LENGTH) -> Transform:
        return transform(self.objective, TOKENIZER, length, self.model)


CASES = {
    "next": Case(c.NextToken(loss=LOSS), decoder()),
    "ahead": Case(c.NextToken(loss=LOSS), decoder(ahead=AHEAD)),
    "prefix": Case(c.PrefixLm(loss=LOSS), decoder()),
    "middle": Case(c.FillInTheMiddle(loss=LOSS, rate=0.8), decoder()),
    "masked": Case(c.MaskedLm(loss=LOSS), encoder()),
    "whole words": Case(c.MaskedLm(loss=LOSS, masking=c.Masking(whole_words=True)), encoder()),
    "next sentence": Case(c.MaskedLm(loss=LOSS, sentences=c.Sentences()), encoder(**JUDGE)),
    "sentence order": Case(c.MaskedLm(loss=LOSS, sentences=c.Sentences(kind="order")), encoder(**JUDGE)),
    "replaced": Case(c.ReplacedToken(loss=LOSS), encoder(head=None, tasks=(REPLACED,), generator=GENERATOR)),
    "spans": Case(c.SpanCorruption(loss=LOSS), both()),
    "spans, decoder": Case(c.SpanCorruption(loss=LOSS), decoder()),
    "ul2": Case(c.Ul2(loss=LOSS), both()),
    "ul2, decoder": Case(c.Ul2(loss=LOSS), decoder()),
    "noise": Case(c.Denoising(loss=LOSS, rotate=0.5, delete=0.1, mask_tokens=0.1), both()),
    "pairs": Case(c.SequencePairs(loss=LOSS), both()),
    "pairs, decoder": Case(c.SequencePairs(loss=LOSS, bidirectional=True, too_long="truncate"), decoder()),
}
