"""The command line. Each verb is a module of its own, imported when it is called; help never imports jax."""

import importlib
import inspect
import logging
import sys

from pretrain.errors import CheckFailed, UserError

DONE, OURS, YOURS, CHECK, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes: finished; we failed; the input is wrong; a check did not hold; Ctrl-C."""

VERBS = {
    "demo": "a tour on real text: tokenizer, training, resume, samples, export, report",
    "config": "list, show, diff or explain a config",
    "data": "prepare a corpus, show its numbers, decode any batch, find a passage's steps, audit a run",
    "tokenizer": "train a tokenizer, show what one does with a text, compare several",
    "certify": "does every layout compute the same: a small model on every mesh of eight simulated devices",
    "plan": "does it fit, how fast is it, what would help: compiled for chips that are not here",
    "launch": "start a run on SLURM, GKE, TPU VMs or through SkyPilot",
    "train": "run or resume: the same command again continues",
    "replay": "compute steps of a run again and hold them against its log",
    "evaluate": "loss, perplexity and bits per byte of a run",
    "generate": "continue a prompt, answer a source, fill masks",
    "chat": "continue a text in the terminal, line by line",
    "export": "write a run in the Hugging Face layout",
    "import": "check a Hugging Face folder and keep its model, to generate or start a run from",
    "report": "one offline HTML page about a run",
    "doctor": "look for what is wrong with this machine or with a run",
}

USAGE = """usage: pretrain VERB ... [--json] [--debug]

LLM pretraining in JAX. `pretrain VERB --help` shows the options of a verb, with examples.

{verbs}

examples:
  pretrain demo                                            about three minutes on two cores, no download
  pretrain config show llama.llama2_7b                     every value, parameters and FLOPs
  pretrain train runs.smoke --steps 20                     runs/smoke; the same command again continues
  pretrain generate smoke --prompt "def " --max-tokens 40

exit code: 0 done, 1 we failed, 2 the input is wrong, 3 a check failed, 75 hung, 130 interrupted"""


def main(argv: list[str] | None = None) -> int:
    """The exit code. Prints each problem of the input as one line on stderr."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if not debug:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns of files that only it knows
    try:
        return run([w for w in words if w != "--debug"])
    except UserError as error:
        _traceback(debug)
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return CHECK if isinstance(error, CheckFailed) else YOURS
    except KeyboardInterrupt:
        _traceback(debug)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # whoever read it is gone; Python's own flush at exit would complain
        return DONE
    except Exception as error:
        _traceback(debug)
        message = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "" if debug else " (--debug shows the traceback)"
        print(f"internal error: {message}{hint}", file=sys.stderr)
        return OURS


def run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(verbs=_table(VERBS)))
        return DONE
    if words[0] == "--version":
        from pretrain import __version__

        print(__version__)
        return DONE
    verb, *rest = words
    if verb not in VERBS:
        raise UserError(_unknown(verb, list(VERBS), "verb", "pretrain --help lists all"))
    command = command_of(verb)
    prog = f"pretrain {verb}"
    if isinstance(command, dict):
        if not rest or rest[0] in ("-h", "--help"):
            print(_actions(prog, command))
            return DONE if rest else YOURS
        action, *rest = rest
        if action not in command:
            raise UserError(_unknown(action, list(command), f"action of {prog}", f"choose from {', '.join(command)}"))
        prog, command = f"{prog} {action}", command[action]
    from pretrain.cli import arguments

    if "-h" in rest or "--help" in rest:
        arguments.show_help(command, prog)
        return DONE
    return arguments.parse(command, rest, prog)() or DONE


def command_of(verb: str) -> type | dict[str, type]:
    """The dataclass of a verb's arguments, which is called to run it; one for each action where there are several."""
    module = "import_" if verb == "import" else verb
    return importlib.import_module(f"pretrain.cli.{module}").COMMAND


def _unknown(word: str, known: list[str], what: str, otherwise: str) -> str:
    from pretrain.cli import flags

    return flags.no_such(word, known, what, otherwise)


def _actions(prog: str, commands: dict[str, type]) -> str:
    """Help of a verb with actions: the first line and the examples of each."""
    documents = {name: inspect.cleandoc(cls.__doc__ or "") for name, cls in commands.items()}
    first = {name: text.splitlines()[0] for name, text in documents.items()}
    examples = [text.split("examples:\n", 1)[-1] for text in documents.values()]
    lines = "\n".join(e.rstrip() for e in examples)
    return f"usage: {prog} {'|'.join(commands)} ...\n\n{_table(first)}\n\nexamples:\n{lines}"


def _table(rows: dict[str, str]) -> str:
    width = max(map(len, rows)) + 2
    return "\n".join(f"  {name:<{width}}{text}" for name, text in rows.items())


def _traceback(debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
