"""Words of a command line to typed values, and what to say when they do not fit."""

import io
import types
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

HABITS = {
    "learning_rate": "optimizer.peak_lr",
    "lr": "optimizer.peak_lr",
    "max_lr": "optimizer.peak_lr",
    "warmup": "optimizer.schedule.warmup_steps",
    "grad_clip": "optimizer.clip_norm",
    "max_grad_norm": "optimizer.clip_norm",
    "batch_size": "batch.rows",
    "gradient_accumulation_steps": "batch.accumulate",
    "max_steps": "steps",
    "train_steps": "steps",
    "layers": "model.decoder.repeats",
    "n_layer": "model.decoder.repeats",
    "num_hidden_layers": "model.decoder.repeats",
    "hidden_size": "model.d_model",
    "intermediate_size": "model.decoder.pattern.0.mlp.d_ff",
    "num_attention_heads": "model.decoder.pattern.0.mixer.heads",
    "num_key_value_heads": "model.decoder.pattern.0.mixer.kv_heads",
    "rope_theta": "model.decoder.pattern.0.mixer.position.theta",
    "max_seq_len": "data.sequence_length",
    "seq_len": "data.sequence_length",
    "block_size": "data.sequence_length",
    "dtype": "compute",
    "save_steps": "checkpoint.every",
    "eval_steps": "evals.every",
    "logging_steps": "log.every",
    "output_dir": "run",
    "max_new_tokens": "max_tokens",
}
"""What other trainers call our fields; only for the question "did you mean"."""


def is_flag(word: str) -> bool:
    return word.startswith("--") and word[2:3].isalpha()


def name_of(flag: str) -> str:
    """`--optimizer.peak-lr=3e-4` is optimizer.peak_lr."""
    return flag[2:].split("=", 1)[0].replace("-", "_")


def grouped(words: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(flag as typed, words up to the next one); `--a=b` is `--a b`. Words before the first flag stand under ''."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if is_flag(word):
            flag, *values = word.split("=", 1)
            groups.append((flag, values))
        else:
            if not groups:
                groups.append(("", []))
            groups[-1][1].append(word)
    return groups


def plain(annotation: Any) -> Any:
    """The annotation without the classes among its choices, which no single word spells; None where nothing is left."""
    choices = [a for a in options(annotation) if not is_dataclass(a) and not _is_table(a)]
    return None if not choices or choices == [type(None)] else Union[tuple(choices)]  # noqa: UP007 of a computed tuple


def classes(annotation: Any) -> list[type]:
    return [a for a in options(annotation) if isinstance(a, type) and is_dataclass(a)]


def options(annotation: Any) -> tuple[Any, ...]:
    """What may stand there, without classes that hold tables, which no option can spell."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return tuple(a for a in (get_args(annotation) if is_union else (annotation,)) if not _holds_tables(a))


@cache
def _holds_tables(annotation: Any) -> bool:
    return is_dataclass(annotation) and any(_is_table(hint) for hint in get_type_hints(annotation).values())


def _is_table(annotation: Any) -> bool:
    return hasattr(get_origin(annotation) or annotation, "items")


def arity(annotation: Any) -> int | None:
    """How many words a value takes; None: any number."""
    widest = [a for a in options(annotation) if get_origin(a) is tuple]
    if not widest:
        return 0 if annotation is bool else 1
    args = get_args(widest[0])
    return None if len(args) == 2 and args[1] is ... else len(args)


def value(annotation: Any, words: Sequence[str]) -> Any:
    """The value that the words spell. Raises ValueError when they do not."""
    choices = options(annotation)
    if annotation is bool:
        words = [w.capitalize() for w in words] or ["True"]
    if len(words) == 1:
        if type(None) in choices and words[0].lower() == "none":
            return None
        if str in choices:
            return words[0]
    if annotation == tuple[str, ...]:
        return tuple(words)
    import tyro

    try:
        with redirect_stderr(io.StringIO()):
            return tyro.cli(annotation, args=list(words), console_outputs=False, add_help=False)
    except SystemExit:
        raise ValueError from None


def describe(annotation: Any) -> str:
    words = {int: "an integer", float: "a number", bool: "True or False", str: "a text", type(None): "None"}
    parts = []
    for a in options(annotation):
        if get_origin(a) is Literal:
            parts += map(str, get_args(a))
        elif get_origin(a) is tuple:
            each = [describe(b) for b in get_args(a) if b is not ...]
            parts.append(f"any number of values, each {each[0]}" if arity(a) is None else f"{len(each)} values")
        else:
            parts.append(words.get(a, getattr(a, "__name__", str(a))))
    return " or ".join(parts)


def mismatch(name: str, words: Sequence[str], expected: str, now: Any = None) -> str:
    found = repr(" ".join(words)) if words else "no value"
    return f"{name}: found {found}, expected {expected}" + ("" if now is None else f"; it is {now} now")


def no_such(name: str, names: Iterable[str], what: str, otherwise: str) -> str:
    """The problem of an unknown name, with the nearest known ones."""
    near = nearest(name, list(names))
    return f"{name}: no such {what}; " + (f"did you mean {' or '.join(near)}?" if near else otherwise)


def nearest(name: str, names: Sequence[str], at_most: int = 3) -> list[str]:
    last = name.rsplit(".", 1)[-1]
    same = [n for n in names if n.rsplit(".", 1)[-1] == last]
    if same:
        return get_close_matches(name, same, at_most, 0) or same[:at_most]
    for habit in get_close_matches(last, HABITS, 1, 0.85):
        if HABITS[habit] in names:
            return [HABITS[habit]]
    close = get_close_matches(name, names, 1, 0.75)
    if close:
        return close
    lasts = {n.rsplit(".", 1)[-1]: n for n in reversed(names)}
    return [lasts[n] for n in get_close_matches(last, lasts, 1, 0.7)] or get_close_matches(name, names, at_most)
