"""config.json as a value: every field is read, known to be harmless, or refused by name."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

from pretrain.errors import UserError
from pretrain.models.config import (
    AttentionConfig,
    BlockConfig,
    InitConfig,
    MlpConfig,
    MoeConfig,
    StackConfig,
    TransformerConfig,
)
from pretrain.models.convert.engine import Family

HARMLESS = frozenset(
    [
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "hidden_dropout_prob",
        "id2label",
        "keys_to_ignore_at_inference",
        "label2id",
        "language",
        "max_length",
        "min_length",
        "model_type",
        "name_or_path",
        "num_labels",
        "pad_token_id",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "transformers_version",
        "use_cache",
        "use_return_dict",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "early_stopping",
        "length_penalty",
        "num_beams",
        "num_beam_groups",
        "num_return_sequences",
        "repetition_penalty",
        "typical_p",
        "diversity_penalty",
        "sep_token_id",
        "unk_token_id",
    ]
)
"""Names and settings of generation, storage and other heads: the logits do not hang on them."""


class Unlike(UserError):
    """A family has no form for this kind of model at all: some other refuses it for a better reason."""


REQUIRED = object()
LARGEST = 2**31
"""No size, rate or base of any model comes near it."""


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        return type(value) in (int, kind) and abs(value) < LARGEST  # neither a bool nor NaN
    return isinstance(value, kind)


class Fields:
    """Reads fields and collects what is wrong with them; `finish` raises one UserError for all of it."""

    def __init__(
        self,
        values: Mapping[str, Any],
        architecture: str,
        where: str = "config.json",
        problems: list[str] | None = None,
    ):
        self.values, self.architecture, self.where = dict(values), architecture, where
        self.problems = [] if problems is None else problems
        self.seen: set[str] = set()

    def take(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """The value; `default` where it is absent or null. Integers are numbers with a point too, booleans are none."""
        self.seen.add(name)
        value = self.values.get(name)
        if value is None and default is not REQUIRED:
            return default
        if value is not None and _is(value, kind):
            return float(value) if kind is float else value
        found = "nothing" if value is None else repr(value)[:60]
        self.problems.append(f"{self.where}: {name} is {found}, expected {kind.__name__}; correct it")
        return default if default is not REQUIRED else None

    def size(self, name: str, default: Any = REQUIRED) -> Any:
        """A positive whole number."""
        return self.positive(name, default, int)

    def positive(self, name: str, default: Any = REQUIRED, kind: type = float, above: int = 0) -> Any:
        before = len(self.problems)
        value = self.take(name, kind, default)
        if value is not None and len(self.problems) == before and value <= above:
            self.problems.append(f"{self.where}: {name} is {value}, expected a number above {above}; correct it")
        return value

    def optional(self, name: str, default: Any, kind: type = float) -> Any:
        """A positive number, or None where null says that there is none; `default` where nothing is said."""
        self.seen.add(name)
        return self.positive(name, None, kind) if name in self.values else default

    def choose(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        """What the value stands for."""
        value = self.take(name, str, default)
        if value in choices:
            return choices[value]
        self.problems.append(f"{self.where}: {name} is {value!r}, expected one of {', '.join(choices)}")
        return choices[default]

    def expect(self, name: str, value: Any) -> None:
        """For a field of which one value, also its default, is supported."""
        self.seen.add(name)
        found = self.values.get(name, value)
        if found != value:
            self.problems.append(
                f"{self.where}: {name} is {repr(found)[:60]}, only {value!r} is supported in {self.architecture}"
            )

    def skip(self, *names: str) -> None:
        """Fields that do not change what the model computes."""
        self.seen.update(names)

    def leftovers(self) -> None:
        """A field nobody asked for may be null, false or empty; any other value could mean another function."""
        for name, value in self.values.items():
            if name not in self.seen and name not in HARMLESS and value not in (None, False, [], {}, ""):
                self.problems.append(
                    f"{self.where}: {name} is {repr(value)[:60]}, which {self.architecture} does not have; "
                    "remove it if the model was trained without it"
                )

    def finish(self) -> None:
        self.leftovers()
        if self.problems:
            raise UserError(*(" ".join(problem.split()) for problem in self.problems))


def decoder(config: TransformerConfig, architecture: str) -> BlockConfig:
    """The first layer of a decoder that may be a plain one; the others are compared with it later."""
    return first(alone(config, "decoder", architecture), "decoder", architecture)


def dense(
    config: TransformerConfig, architecture: str, name: Literal["decoder", "encoder"] = "decoder"
) -> tuple[BlockConfig, AttentionConfig, MlpConfig]:
    """The first layer of a decoder or encoder and its halves; raises UserError unless they are the plain ones."""
    return halves(alone(config, name, architecture), name, architecture)


def alone(config: TransformerConfig, name: Literal["decoder", "encoder"], architecture: str) -> StackConfig:
    """The only stack of a model; raises Unlike for one with another."""
    other = "encoder" if name == "decoder" else "decoder"
    stack = getattr(config, name)
    if stack is None or getattr(config, other) is not None:
        article = {"encoder": "an encoder", "decoder": "a decoder"}
        raise Unlike(
            f"found {article[other]} in the model, {architecture} is {article[name]} only; export another architecture"
        )
    return stack


def halves(stack: StackConfig, name: str, architecture: str) -> tuple[BlockConfig, AttentionConfig, MlpConfig]:
    """The first layer of a stack, its attention and its MLP; raises Unlike unless they are the plain ones."""
    block = first(stack, name, architecture)
    if not isinstance(block.mlp, MlpConfig) or not isinstance(block.mixer, AttentionConfig):
        found = type(block.mlp).__name__.replace("NoneType", "nothing")
        raise Unlike(f"{name}.0.mlp: found {found}, {architecture} has only plain MLPs; export another")
    return block, block.mixer, block.mlp


def first(stack: StackConfig, name: str, architecture: str) -> BlockConfig:
    block = stack.blocks[0]
    if not isinstance(block.mixer, AttentionConfig):
        raise Unlike(f"{name}.0.mixer: found {type(block.mixer).__name__}, {architecture} has only plain attention")
    return block


def expressed(family: Family, config: TransformerConfig, length: int | None = None) -> dict:
    """config.json of this model; raises UserError with every field that `family` would not read back as it is."""
    out = family.to_hf(config, length)
    alike: dict[tuple, list[str]] = {}
    for name, a, b in differences(essence(config), essence(family.from_hf(out))):
        alike.setdefault((re.sub(r"\.\d+\.", ".", name), repr(a), repr(b)), []).append(name)
    problems = []
    for (_, a, b), (first, *more) in alike.items():
        where = f"{first}={a} (and {len(more)} more)" if more else f"{first}={a}"
        problems.append(f"{where}: {family.architecture} would read {b}, it has no such setting")
    if problems:
        raise UserError(*problems)
    return out


def _quiet(block: BlockConfig) -> BlockConfig:
    """A layer as it is after training, with its mixture's balancing bias but not what moved it."""
    if isinstance(block.mlp, MoeConfig):
        router = block.mlp.router
        rate = None if router.balance_rate is None else 0.0
        router = replace(router, balance_loss=0.0, z_loss=0.0, balance_rate=rate)
        block = replace(block, mlp=replace(block.mlp, router=router))
    return replace(block, dropout=0.0)


def essence(config: TransformerConfig) -> dict:
    """What a trained model computes: its layers one by one, without initialisation, dropout, rematerialisation and
    adapters, which an export adds to their matrices."""

    def plain(stack: StackConfig | None):
        if stack is None:
            return None
        layers = {str(i): _quiet(block) for i, block in enumerate(stack.blocks)}
        return {**layers, **{name: getattr(stack, name) for name in ("positions", "embed_norm", "final_norm")}}

    ahead, generator = config.ahead, config.generator
    quiet = replace(
        config,
        init=InitConfig(),
        encoder=None,
        decoder=None,
        generator=None,
        adapters=(),
        embed=replace(config.embed, dropout=0.0, width=_wider(config)),
        tasks=(),
        ahead=ahead and replace(ahead, block=_quiet(ahead.block)),
    )
    proposes = generator and {"d_model": generator.d_model, "encoder": plain(generator.encoder), "head": generator.head}
    return {
        "encoder": plain(config.encoder),
        "decoder": plain(config.decoder),
        "generator": proposes,
        "tasks": {task.name: replace(task, dropout=0.0) for task in config.tasks},
        "": quiet,
    }


def _wider(config: TransformerConfig) -> int | None:
    """None where the embeddings are as wide as the layers, however that is said."""
    return None if config.embed.width == config.d_model else config.embed.width


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of every leaf in which two trees of dataclasses and dicts differ."""
    if a == b:
        return
    if is_dataclass(a) and type(a) is type(b):
        pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(a)}
    elif isinstance(a, dict) and isinstance(b, dict):
        pairs = {key: (a.get(key), b.get(key)) for key in {**a, **b}}
    else:
        yield path, a, b
        return
    for name, (x, y) in pairs.items():
        yield from differences(x, y, ".".join(part for part in (path, name) if part))
