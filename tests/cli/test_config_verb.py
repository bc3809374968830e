import json
from pathlib import Path

import pytest

from pretrain import presets
from pretrain.cli import main
from pretrain.config import RunConfig
from pretrain.models import accounting
from pretrain.serial import decode


@pytest.fixture
def result(capsys):
    """Runs a command that must succeed; what it printed, decoded when it is JSON."""

    def run(*words: str):
        assert main(list(words)) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out) if "--json" in words else out

    return run


@pytest.mark.parametrize(("name", "count"), [("llama.llama2_7b", 6738415616), ("gpt2.small", 124439808)])
def test_show_gives_scripts_the_exact_count(name, count, result):
    facts = result("config", "show", name, "--json")
    assert list(facts) == ["parameters", "parameters_active", "flops_per_token", "config"]
    assert facts["parameters"] == facts["parameters_active"] == count


def test_show_gives_scripts_the_whole_run(result):
    facts = result("config", "show", "runs.smoke", "--json", "--steps", "50")
    config = decode(facts["config"], RunConfig)
    assert config == presets.overrides(presets.load("runs.smoke"), ["--steps", "50"])
    assert facts["flops_per_token"] == accounting.flops_per_token(config.model, config.data.sequence_length)


def test_the_flops_are_of_rows_as_long_as_asked(result):
    model = presets.load("llama.llama2_7b")
    for words, length in ((["--sequence", "4096"], 4096), ([], 2048)):
        facts = result("config", "show", "llama.llama2_7b", "--json", *words)
        assert facts["flops_per_token"] == accounting.flops_per_token(model, length)
    facts = result("config", "show", "gpt2.small", "--json")
    assert facts["flops_per_token"] == accounting.flops_per_token(presets.load("gpt2.small"), 1024)


def test_every_line_of_show_is_an_option(result):
    lines = result("config", "show", "runs.smoke").split("\n\n", 1)[1].splitlines()
    names = [line.split(" = ")[0] for line in lines]
    assert "optimizer.peak_lr = 0.003" in lines
    assert "optimizer.kind = AdamW" in lines
    known = presets.settable(presets.load("runs.smoke"))
    for name in names:
        assert name in known or name.rsplit(".", 1)[0] in known


def test_diff_of_two_configs_names_each_value_once(result):
    changes = result("config", "diff", "llama.llama2_7b", "llama.llama2_13b", "--json")["changes"]
    assert changes["d_model"] == {"from": 4096, "to": 5120}
    assert changes["decoder.repeats"] == {"from": 32, "to": 40}
    assert "vocab_size" not in changes


def test_diff_with_options_compares_the_config_with_itself(result):
    assert result("config", "diff", "runs.smoke", "--steps", "50") == "steps = 60 -> 50\n"
    assert result("config", "diff", "runs.smoke") == "no difference\n"


def test_why_tells_the_command_line_from_the_preset(result):
    out = result("config", "why", "runs.smoke", "--steps", "50")
    assert out == "steps = 50    command line; preset runs.smoke: 60\n"
    values = result("config", "why", "runs.smoke", "--steps", "50", "--json")["values"]
    assert values == {"steps": {"value": 50, "source": "command line", "instead_of": 60}}


def test_why_calls_a_run_a_run_and_a_file_a_file(world, result):
    out = result("config", "why", "runs/begun", "--field", "seed")
    assert out == "seed = 0    run runs/begun\n"
    out = result("config", "why", "my/good.py", "--seed", "4")
    assert out == "seed = 4    command line; file my/good.py: 0\n"


def test_another_class_brings_its_own_fields_and_takes_the_old_ones(result):
    words = ["runs.smoke", "--optimizer.schedule", "wsd", "--optimizer.schedule.shape", "linear"]
    lines = result("config", "diff", *words).splitlines()
    assert lines[0] == "optimizer.schedule = Cosine -> WSD"
    assert "optimizer.schedule.shape = linear (new)" in lines
    assert result("config", "diff", *words, "--json")["changes"]["optimizer.schedule.shape"] == {"to": "linear"}
    assert "optimizer.schedule.shape = linear    command line" in result("config", "why", *words).splitlines()
    lines = result("config", "diff", "runs.smoke", "--optimizer.kind", "lion").splitlines()
    assert "optimizer.kind.eps = 1e-08 (gone)" in lines
    assert "None" not in " ".join(lines)


def test_a_value_stays_on_its_line(result):
    out = result("config", "diff", "runs.smoke", "--data.path", "two\nlines", "--evals.prompts", "a\nb", "")
    assert out == "data.path = None -> \"two\\nlines\"\nevals.prompts = ['def '] -> ['a\\nb', '']\n"


def test_why_of_a_field_tells_also_what_nobody_changed(result):
    out = result("config", "why", "runs.smoke", "--field", "optimizer.peak-lr")
    assert out == "optimizer.peak_lr = 0.003    preset runs.smoke\n"
    assert result("config", "why", "runs.smoke") == "every value is that of preset runs.smoke\n"


def test_why_of_a_group_tells_all_of_it(result):
    values = result("config", "why", "runs.smoke", "--field", "mesh", "--mesh.tensor", "2", "--json")["values"]
    sources = {name: v["source"] for name, v in values.items()}
    assert sources.pop("mesh.tensor") == "command line"
    assert {"mesh.data", "mesh.fsdp", "mesh.stage"} < set(sources)
    assert set(sources.values()) == {"preset runs.smoke"}


def test_list_names_every_config(result):
    assert result("config", "list").splitlines() == result("config", "list", "--json")["configs"] == presets.names()


def test_a_run_shows_the_config_it_ran(world: Path, result):
    tiny = presets.load("my/good.py")
    assert decode(result("config", "show", "runs/begun", "--json")["config"], RunConfig) == tiny
