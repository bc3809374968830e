"""The verbs that only pass on: what reaches the function behind them, and what is printed."""

import importlib
import json
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass, replace

import pytest

from pretrain.cli import main
from pretrain.cli.chat import context, typed
from pretrain.models.config import LearnedPositions, StackConfig, TransformerConfig
from pretrain.models.generate.config import BeamSearch
from pretrain.sharding.processes import Processes
from tests.cli.conftest import tiny


class Letters:
    """A tokenizer whose ids are code points."""

    bos, eos = 1, 2

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


@dataclass
class Finding:
    severity: str
    where: str = "checkpoints/3"
    what: str = "damaged"
    do: str = "use 2"


@pytest.fixture
def stand_in(monkeypatch, world):
    """Puts functions in the place of a module's; returns the list of calls they get."""
    calls = []

    def put(module: str, **results):
        made = types.ModuleType(module)
        for name, result in results.items():

            def function(*args, _name=name, _result=result, **kwargs):
                calls.append((_name, args, kwargs))
                return _result

            setattr(made, name, function)
        monkeypatch.setitem(sys.modules, module, made)
        parent, _, last = module.rpartition(".")
        monkeypatch.setattr(importlib.import_module(parent), last, made, raising=False)
        return calls

    return put


class Opened(types.SimpleNamespace):
    """A run's facts that a test may change."""

    @property
    def add_bos(self) -> bool:
        return self.config.data.corpus.add_bos


@pytest.fixture
def opened():
    model = types.SimpleNamespace(
        config=TransformerConfig(vocab_size=9, d_model=4, decoder=StackConfig(pattern=(), repeats=0))
    )
    return Opened(model=model, tokenizer=Letters(), config=tiny(), step=7, path="runs/begun")


@pytest.fixture
def decoding(stand_in, opened):
    stand_in("pretrain.opened", open_run=opened)
    made = types.SimpleNamespace(tokens=[[104, 105]], logprobs=[[-0.5, -1.0]])
    return stand_in("pretrain.models.generate.decode", generate=made, stream=iter([104, 105]))


def test_train_passes_config_run_and_options(stand_in, capsys):
    calls = stand_in("pretrain.job", train={"step": 5, "loss": 2.5})
    words = "train my/good.py --steps 25 --run runs/new --allow optimizer.peak-lr log --allow mesh --json"
    assert main(words.split()) == 0
    (_, (config, run), options) = calls[0]
    assert (config.steps, str(run)) == (25, "runs/new")
    assert options["allow"] == ("optimizer.peak_lr", "log", "mesh")
    assert (options["preset"], options["processes"]) == ("my/good.py", None)
    assert json.loads(capsys.readouterr().out) == {"run": "runs/new", "step": 5, "loss": 2.5}


@pytest.mark.parametrize(
    ("config", "run"),
    [("my/good.py", "runs/good"), ("runs.smoke", "runs/smoke"), ("runs/begun", "runs/begun")],
)
def test_a_run_is_named_after_its_config(config, run, stand_in):
    calls = stand_in("pretrain.job", train={})
    assert main(["train", config]) == 0
    assert str(calls[0][1][1]) == run


def test_train_passes_its_place_among_processes(stand_in):
    calls = stand_in("pretrain.job", train={})
    assert main(["train", "my/good.py", "--coordinator", "a:1", "--processes", "2", "--process", "1"]) == 0
    assert calls[0][2]["processes"] == Processes(coordinator="a:1", count=2, index=1)


def test_generate_prints_text_or_all_of_it(decoding, capsys):
    words = ["generate", "begun", "--prompt", "ab", "--max-tokens", "3", "--temperature", "0", "--step", "7"]
    assert main(words) == 0
    assert capsys.readouterr().out == "abhi\n"
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"text": "hi", "tokens": [104, 105], "logprobs": [-0.5, -1.0]}
    _, (_, prompts), options = decoding[1]
    assert (prompts, options["max_tokens"], options["stop_tokens"]) == ([[97, 98]], 3, (2,))
    assert options["sampling"].greedy
    assert decoding[0][2] == {"step": 7}


@pytest.mark.parametrize("words", ["--run begun --prompt ab", "--prompt=ab begun", "--prompt ab --json begun"])
def test_the_run_may_stand_anywhere_and_be_named(words, decoding):
    assert main(["generate", *words.split()]) == 0
    assert decoding[0][1][0].name == "begun"
    assert decoding[1][1][1] == [[97, 98]]


def test_a_config_after_options_is_asked_for_in_its_place(capsys):
    assert main(["train", "--steps", "5", "runs.smoke"]) == 2
    assert capsys.readouterr().err == (
        "CONFIG: missing, pretrain train needs it before the options; see pretrain train --help\n"
    )


def test_a_prompt_begins_as_documents_did_in_training(decoding, opened):
    from dataclasses import replace

    config = tiny()
    opened.config = replace(config, data=replace(config.data, corpus=replace(config.data.corpus, add_bos=True)))
    assert main(["generate", "begun", "--prompt", "ab"]) == 0
    assert decoding[1][1][1] == [[1, 97, 98]]


def test_generate_needs_a_tokenizer(decoding, opened, capsys):
    opened.tokenizer = None
    assert main(["generate", "begun", "--prompt", "ab"]) == 2
    assert capsys.readouterr().err == (
        "runs/begun: found no tokenizer, expected tokenizer.json or tokenizer.model; copy it there\n"
    )


def test_chat_on_a_pipe_keeps_the_text_until_reset(decoding, monkeypatch, capsys):
    lines = iter(["ab", "", "cd", "/reset", "ef", "/quit", "never"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "begun"]) == 0
    asked = ["".join(map(chr, args[1])) for name, args, _ in decoding if name == "stream"]
    assert asked == ["ab", "abhi\ncd", "ef"]
    assert capsys.readouterr().out.startswith("hi\n")


def test_chat_ends_with_its_input(decoding, monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert main(["chat", "begun"]) == 0


def test_a_long_chat_keeps_its_end_where_positions_are_a_table():
    stack = StackConfig(pattern=(), repeats=0, positions=LearnedPositions(length=8))
    config = TransformerConfig(vocab_size=9, d_model=4, decoder=stack)
    assert context([1, 2, 3, 4, 5, 6], config, max_tokens=5) == [4, 5, 6]
    assert context([1, 2], config, max_tokens=99) == [2]
    assert context([1, 2, 3], replace(config, decoder=replace(stack, positions=None)), max_tokens=99) == [1, 2, 3]


def test_half_a_character_waits_for_its_other_half(capsys):
    class Bytes:
        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    assert typed(iter("né".encode()), Bytes()) == "né"
    assert capsys.readouterr().out == "né\n"


def test_evaluate_prints_what_was_measured(stand_in, opened, capsys):
    stand_in("pretrain.opened", open_run=opened)
    calls = stand_in("pretrain.evaluate.perplexity", evaluate={"loss": 2.0, "tokens": 64})
    assert main(["evaluate", "begun", "--batches", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"step": 7, "loss": 2.0, "tokens": 64}
    assert calls[1][2] == {"batches": 3, "translations": None, "search": None}
    assert main(["evaluate", "begun", "--batches", "all", "--translations", "9", "--beams", "2"]) == 0
    assert calls[3][2] == {"batches": "all", "translations": 9, "search": BeamSearch(beams=2)}


def test_export_passes_the_opened_run_and_its_options(stand_in, opened, capsys):
    stand_in("pretrain.opened", open_run=opened)
    facts = {"max_abs_logit_difference": 0.0, "compared_with": "own reload", "unread_tensors": []}
    calls = stand_in("pretrain.exchange", export_run=facts)
    assert main(["export", "begun", "--to", "new", "--dtype", "bfloat16", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts
    name, (what, to), options = calls[1]
    assert (name, what, str(to), options) == ("export_run", opened, "new", {"dtype": "bfloat16", "check": True})


def test_import_passes_folder_and_run(stand_in):
    calls = stand_in("pretrain.exchange", import_folder={"run": "runs/imported"})
    assert main(["import", "hub/damaged", "--run", "runs/imported"]) == 0
    assert list(map(str, calls[0][1])) == ["hub/damaged", "runs/imported"]


def test_report_prints_the_page(stand_in, capsys):
    stand_in("pretrain.report", write_report="runs/begun/report.html")
    assert main(["report", "begun"]) == 0
    assert capsys.readouterr().out == "runs/begun/report.html\n"


@pytest.mark.parametrize(("findings", "code"), [([], 0), ([Finding("warning")], 0), ([Finding("error")], 3)])
def test_doctor_ends_with_3_when_something_is_wrong(findings, code, stand_in, capsys):
    calls = stand_in("pretrain.doctor", examine=findings, environment=[])
    assert main(["doctor", "begun", "--json"]) == code
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], len(facts["findings"])) == (code == 0, len(findings))
    assert [name for name, _, _ in calls] == ["examine"]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "nothing wrong found\n"


def test_demo_passes_its_folder(stand_in):
    calls = stand_in("pretrain.demo", demo={"seconds": 100})
    assert main(["demo", "--fresh", "--run", "x"]) == 0
    assert (str(calls[0][1][0]), calls[0][1][1]) == ("x", True)


INTERRUPTIBLE = """
import signal, sys
from pretrain.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in its background
sys.exit(main())
"""


def test_an_interrupted_command_ends_with_130_and_says_nothing(tmp_path):
    config = tmp_path / "slow.py"
    config.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    command = [sys.executable, "-c", INTERRUPTIBLE, "config", "show", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "here\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == ""
