"""Configs by name, by file or by run, and the fields that a command line changes. Imports no jax itself."""

import ast
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pretrain import errors, untrusted
from pretrain.cli import flags
from pretrain.config import RunConfig
from pretrain.errors import UserError
from pretrain.models.config import Remat, TransformerConfig
from pretrain.serial import decode

Preset = RunConfig | TransformerConfig
C = TypeVar("C", bound=Preset)
CONFIGS = Path(__file__).parent / "configs"


def load(name: str) -> Preset:
    """A dotted name under pretrain.configs, a .py file that defines `run()`, a run.json or a run directory.

    Raises UserError, with the nearest names where there is no such thing.
    """
    if name.endswith(".py"):
        return _from_file(name)
    if _names_run(name):
        return _from_run(name)
    *module, last = name.split(".")
    if name not in names():
        if (Path("runs") / name / "run.json").exists():
            raise UserError(f"{name}: no such config, but a run has that name; write runs/{name}")
        raise UserError(flags.no_such(name, names(), "config", "pretrain config list shows all"))
    if name in _modules():
        return importlib.import_module(f"pretrain.configs.{name}").run()
    return getattr(importlib.import_module(".".join(["pretrain.configs", *module])), last)()


def described(name: str) -> str:
    """The same name with what it names: `preset runs.smoke`, `run runs/try`, `file my_run.py`."""
    return f"{'file' if name.endswith('.py') else 'run' if _names_run(name) else 'preset'} {name}"


def _names_run(name: str) -> bool:
    return name.endswith(".json") or "/" in name or Path(name).is_dir()


def load_run(name: str) -> RunConfig:
    """The same for verbs that need a whole run. Raises UserError when the name is that of a model alone."""
    config = load(name)
    if isinstance(config, TransformerConfig):
        runs = [n for n in names() if n.startswith("runs.")]
        raise UserError(f"{name} is a model without data and optimizer, expected a run; choose from {', '.join(runs)}")
    return config


def names() -> list[str]:
    """Every preset, read from the source without running it."""
    found = []
    for module, path in _modules().items():
        functions = [f for f in ast.parse(path.read_text()).body if isinstance(f, ast.FunctionDef)]
        presets = [f.name for f in functions if _returns_config(f)]
        found += [module if f == "run" else f"{module}.{f}" for f in presets]
    return found


def _modules() -> dict[str, Path]:
    files = sorted(p for p in CONFIGS.rglob("*.py") if p.name != "__init__.py")
    return {".".join(p.relative_to(CONFIGS).with_suffix("").parts): p for p in files}


def _returns_config(function: ast.FunctionDef) -> bool:
    a = function.args
    needed = len(a.posonlyargs + a.args) - len(a.defaults) + sum(d is None for d in a.kw_defaults)
    named = isinstance(function.returns, ast.Name) and function.returns.id in ("RunConfig", "TransformerConfig")
    return named and not needed and not a.kwarg


def _from_file(name: str) -> Preset:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such file, expected Python that defines run(); correct the path")
    spec = importlib.util.spec_from_file_location(f"pretrain_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "run", None)
        config = make() if callable(make) else None
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"{name}:{error.lineno}: {error.msg}; correct the file") from error
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"{name}:{_line(error, path)}: {type(error).__name__}: {message}; correct the file") from error
    if make is None:
        raise UserError(f"{name}: found no function run(), expected one that returns a RunConfig; define it")
    if not isinstance(config, Preset):
        found = type(config).__name__
        raise UserError(f"{name}: run() returned {found}, expected a RunConfig or TransformerConfig; return one")
    return config


def _line(error: BaseException, path: Path) -> int:
    """The last line of the file that the error passed."""
    line, traceback = 1, error.__traceback__
    while traceback is not None:
        if Path(traceback.tb_frame.f_code.co_filename).resolve() == path.resolve():
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _from_run(name: str) -> RunConfig:
    from etils import epath

    path = epath.Path(name)
    path = path if name.endswith(".json") else path / "run.json"
    if not path.exists():
        raise UserError(f"{name}: found no {path.name} there, expected a run; pretrain config list shows other configs")
    try:
        facts = untrusted.load(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}), expected JSON; restore the file") from None
    if not isinstance(facts, dict) or "config" not in facts:
        raise UserError(f"{path}: found no config in it, expected the run.json of a run; name another")
    return decode(facts["config"], RunConfig, f"{path}: config")


def remats() -> dict[str, Remat | None]:
    from pretrain.models.remat import PRESETS

    return PRESETS


NAMED: dict[type, Callable[[], dict[str, Any]]] = {Remat: remats}
"""Classes with values that have a name of their own: --model.decoder.remat save_qkv."""


class _Missing:
    """In place of a required value until a later option gives it."""


def overrides(config: C, words: Sequence[str], also: tuple[str, ...] = ()) -> C:
    """The config with `--dotted.name value ...` applied in order, then checked.

    A field that holds one of several classes takes the name of another (`--optimizer.kind muon`), whose required fields
    come from the old value or from later options. `also`: names of the verb's own options, for "did you mean".
    Raises UserError with every problem at once.
    """
    problems = []
    for flag, values in flags.grouped(words):
        if not flag:
            problems += [f"{v}: expected an option, as --steps 5" for v in values]
            continue
        name = flags.name_of(flag)
        try:
            config = _with(config, name, values, also)
        except UserError as error:
            problems += error.problems
    missing = [name for name, (_, now) in settable(config).items() if now is _Missing]
    problems += [f"{name}: missing, {_owner(config, name)} needs it; add --{_dashes(name)}" for name in missing]
    if not missing:
        problems += [p for p in _checks(config) if p not in problems]
    if problems:
        raise UserError(*problems)
    return config


def settable(config: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (annotation, value) of every field an option can set."""
    if isinstance(config, tuple):
        return {k: v for i, item in enumerate(config) for k, v in settable(item, f"{path}.{i}").items()}
    out, hints = {}, get_type_hints(type(config))
    for f in fields(config):
        name, now = f"{path}.{f.name}" if path else f.name, getattr(config, f.name)
        holds_classes = isinstance(now, tuple) and any(is_dataclass(item) for item in now)
        plain, classes = flags.plain(hints[f.name]) is not None, flags.classes(hints[f.name])
        another = plain or len(flags.options(hints[f.name])) > 1
        if (plain or classes) and (another or not is_dataclass(now)) and not holds_classes:
            out[name] = (hints[f.name], now)
        if holds_classes or is_dataclass(now):
            out |= settable(now, name)
    return out


def _with(config: C, name: str, words: list[str], also: tuple[str, ...]) -> C:
    known = settable(config)
    negated = ".".join([*name.split(".")[:-1], name.rsplit(".", 1)[-1].removeprefix("no_")])
    if name not in known and negated in known and known[negated][0] is bool and not words:
        name, words = negated, ["False"]
    below = [n for n in known if n.startswith(f"{name}.")]
    if name not in known and below:
        raise UserError(f"{name}: holds several fields, expected one of them; set {below[0]} or its neighbours")
    if name not in known:
        raise UserError(flags.no_such(name, [*known, *also], "field", "pretrain config show CONFIG lists all"))
    annotation, now = known[name]
    if len(words) == 1 and (choices := _choices(annotation, now, words[0])):
        return _replaced(config, name.split("."), choices[0])
    spelled = flags.plain(annotation)
    if not words and get_origin(spelled) is tuple and Ellipsis in get_args(spelled):
        return _replaced(config, name.split("."), ())
    try:
        if spelled is None:
            raise ValueError
        return _replaced(config, name.split("."), flags.value(spelled, words))
    except ValueError:
        named = [n for cls in flags.classes(annotation) if cls in NAMED for n in NAMED[cls]()]
        shown = type(now).__name__ if is_dataclass(now) else now
        raise UserError(flags.mismatch(name, words, " or ".join(named) or flags.describe(annotation), shown)) from None


def _choices(annotation: Any, now: Any, word: str) -> list[Any]:
    """The value that a word names among classes, empty when it names none."""
    wanted = word.replace("-", "").replace("_", "").lower()
    candidates = flags.classes(annotation)
    for cls in candidates:
        if cls in NAMED and word.replace("-", "_") in (named := NAMED[cls]()):
            return [named[word.replace("-", "_")]]
        if cls.__name__.lower() == wanted:
            return [now if type(now) is cls else _instance(cls, now)]
    return [None] if candidates and wanted == "none" and type(None) in flags.options(annotation) else []


def _instance(cls: type, old: Any) -> Any:
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    return cls(**{name: getattr(old, name, _Missing) for name in required})


def _replaced(config: Any, path: list[str], value: Any) -> Any:
    head, *rest = path
    if isinstance(config, tuple):
        i = int(head)
        return (*config[:i], _replaced(config[i], rest, value) if rest else value, *config[i + 1 :])
    return replace(config, **{head: _replaced(getattr(config, head), rest, value) if rest else value})


def _owner(config: Any, name: str) -> str:
    for part in name.split(".")[:-1]:
        config = config[int(part)] if isinstance(config, tuple) else getattr(config, part)
    return type(config).__name__


def _dashes(name: str) -> str:
    return name.replace("_", "-")


def _checks(config: Preset) -> tuple[str, ...]:
    try:
        config.check() if isinstance(config, RunConfig) else errors.check(config)
    except UserError as error:
        return error.problems
    return ()
