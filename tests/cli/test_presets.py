import dataclasses
import json
from dataclasses import replace
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import pytest

from pretrain import presets
from pretrain.config import RunConfig
from pretrain.data.config import JsonLines, StandardLibrary, TokenizerFile
from pretrain.errors import UserError
from pretrain.models import tree
from pretrain.models.config import LinearScaling, Rope
from pretrain.models.remat import FULL, SAVE_QKV
from pretrain.optimizer.config import WSD, AdamW, Cosine, Lion, Muon
from pretrain.serial import changes, encode
from pretrain.sharding.rules import AxisRules
from pretrain.state import make_optimizer

SMOKE = presets.load("runs.smoke")


def changed(words: str, config=SMOKE):
    return presets.overrides(config, words.split())


def test_every_listed_name_loads_and_holds():
    for name in presets.names():
        config = presets.load(name)
        assert presets.overrides(config, []) == config


def test_names_are_those_of_runs_and_of_functions_without_arguments():
    names = presets.names()
    assert {"runs.smoke", "llama.llama2_7b", "gpt2.small"} <= set(names)
    assert not {"llama.llama", "gpt2.gpt2", "mistral.mistral", "runs.smoke.run"} & set(names)


def test_a_config_comes_from_a_name_a_file_or_a_run(world):
    tiny = presets.load("my/good.py")
    assert isinstance(tiny, RunConfig)
    assert presets.load("runs/begun") == presets.load("runs/begun/run.json") == tiny


def test_a_file_may_hold_a_model_alone(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("from pretrain.configs.smollm import smollm2_135m as run\n")
    assert presets.load(str(path)) == presets.load("smollm.smollm2_135m")


def test_values_of_every_kind_can_be_set():
    config = changed(
        "--steps 50 --optimizer.peak-lr 3e-4 --model.decoder.repeats 12 --mesh.tensor 2 --mesh.fsdp -1 --data.seed 1 "
        "--data.corpus.source.limit 20 --model.decoder.pattern.0.mixer.position.theta 5e5 --rules fsdp_tp "
        "--optimizer.clip-norm None --evals.prompts one two --data.no-shuffle --log.tensorboard False "
        "--optimizer.groups.1.lr-scale 2 --objective.loss.z-loss=1e-4"
    )
    assert (config.steps, config.optimizer.peak_lr, config.model.decoder.repeats) == (50, 3e-4, 12)
    assert (config.mesh.tensor, config.mesh.fsdp, config.rules, config.data.seed) == (2, -1, "fsdp_tp", 1)
    assert config.data.corpus.source == StandardLibrary(limit=20)
    assert config.model.decoder.pattern[0].mixer.position == Rope(theta=5e5)
    assert (config.optimizer.clip_norm, config.evals.prompts) == (None, ("one", "two"))
    assert (config.data.shuffle, config.log.tensorboard) == (False, False)
    assert (config.optimizer.groups[1].lr_scale, config.objective.loss.z_loss) == (2.0, 1e-4)


def leaves(config, path=""):
    """Every value that is no dataclass and no tuple of them, found without the code under test."""
    hints = get_type_hints(type(config))
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), f"{path}{f.name}"
        items = value if isinstance(value, tuple) else ()
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        elif any(map(dataclasses.is_dataclass, items)):
            for i, item in enumerate(items):
                yield from leaves(item, f"{name}.{i}.")
        elif not any(map(dataclasses.is_dataclass, get_args(hints[f.name]))) or value != ():
            yield name, value


def test_every_value_of_a_run_can_be_set_and_set_to_itself():
    words = []
    for name, value in leaves(SMOKE):
        spelled = list(value) if isinstance(value, tuple) else [str(value)]
        words += [f"--{name.replace('_', '-')}", *spelled]
    assert len(words) > 150
    assert presets.overrides(SMOKE, words) == SMOKE


def test_the_last_of_two_values_counts():
    assert changed("--steps 50 --steps 40").steps == 40


def test_a_text_may_look_like_anything():
    config = presets.overrides(SMOKE, ["--evals.prompts", "-1", "import os\n", "--data.path=--x y"])
    assert (config.evals.prompts, config.data.path) == (("-1", "import os\n"), "--x y")


def test_a_field_takes_another_class_by_name_and_keeps_what_it_needs():
    config = changed("--optimizer.kind muon --optimizer.schedule wsd --optimizer.schedule.shape linear")
    assert config.optimizer.kind == Muon()
    assert config.optimizer.schedule == WSD(warmup_steps=SMOKE.optimizer.schedule.warmup_steps, shape="linear")


def test_another_class_starts_from_its_own_defaults():
    slow = replace(SMOKE, optimizer=replace(SMOKE.optimizer, kind=AdamW(b1=0.5)))
    assert changed("--optimizer.kind lion", slow).optimizer.kind == Lion()


def test_naming_the_class_that_is_there_changes_nothing():
    slow = replace(SMOKE, optimizer=replace(SMOKE.optimizer, kind=AdamW(b1=0.5)))
    assert changed("--optimizer.kind adam-w", slow) == slow
    assert isinstance(changed("--optimizer.schedule cosine").optimizer.schedule, Cosine)


@pytest.mark.parametrize("kind", ["adam-w", "adafactor", "lion", "muon"])
def test_another_kind_of_optimizer_needs_no_other_option(kind):
    config = changed(f"--optimizer.kind {kind}")
    model = tree.abstract(config.model)
    slots = jax.eval_shape(make_optimizer(config, jnp.dtype("float32")).init, model).slots
    assert set(slots) == set(jax.tree.leaves(tree.names(model)))


def test_what_another_class_needs_may_come_later():
    source = changed("--data.corpus.source json-lines --data.corpus.source.paths a b").data.corpus.source
    assert source == JsonLines(paths=("a", "b"))
    tokenizer = changed("--data.corpus.tokenizer TokenizerFile --data.corpus.tokenizer.path t").data.corpus.tokenizer
    assert tokenizer == TokenizerFile(path="t")


def test_optional_parts_appear_and_disappear():
    scaling = "--model.decoder.pattern.0.mixer.position.scaling"
    position = changed(f"{scaling} linear-scaling {scaling}.factor 2").model.decoder.pattern[0].mixer.position
    assert position.scaling == LinearScaling(factor=2.0)
    gone = changed("--model.decoder.pattern.0.mixer.position none").model.decoder.pattern[0].mixer
    assert gone.position is None


def test_remat_is_named_by_its_presets():
    assert changed("--model.decoder.remat save_qkv").model.decoder.remat == SAVE_QKV
    assert changed("--model.decoder.remat save-qkv").model.decoder.remat == SAVE_QKV
    assert changed("--model.decoder.remat full").model.decoder.remat == FULL
    saved = changed("--model.decoder.remat full --model.decoder.remat.save query").model.decoder.remat
    assert saved.save == ("query",)


def test_a_table_of_rules_gives_way_to_a_named_one():
    table = replace(SMOKE, rules=AxisRules(used={"batch": ("data",)}))
    assert changed("--rules dp", table).rules == "dp"
    assert changed("--seed 1", table).rules == table.rules


def test_all_problems_come_at_once():
    with pytest.raises(UserError) as error:
        changed("--stps 3 --batch.rows x --model.d-model 0 --seed -1")
    assert [p.split(":")[0].split("=")[0] for p in error.value.problems] == [
        "stps",
        "batch.rows",
        "seed",
        "model.d_model",
    ]


def test_changes_name_the_fields_that_differ():
    assert changes(SMOKE, changed("--steps 50")) == {"steps": (60, 50)}


def test_changes_of_a_class_are_those_of_its_fields_that_both_have():
    lion = changed("--optimizer.kind lion")
    found = changes(SMOKE, lion)
    assert found["optimizer.kind"] == ("AdamW", "Lion")
    assert found["optimizer.kind.b2"] == (0.95, 0.99)
    assert found["optimizer.kind.eps"] == (1e-8, dataclasses.MISSING)
    assert list(changes(SMOKE, lion, inside=False)) == ["optimizer.kind"]
    assert changes(SMOKE, changed("--evals.prompts a b")) == {"evals.prompts": (["def "], ["a", "b"])}


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("optimizer.learning_rat", "optimizer.peak_lr"),
        ("learning_rate", "optimizer.peak_lr"),
        ("peak_lr", "optimizer.peak_lr"),
        ("batch_size", "batch.rows"),
        ("warmup_steps", "optimizer.schedule.warmup_steps"),
        ("data.sequence_lenght", "data.sequence_length"),
        ("n_layer", "model.decoder.repeats"),
        ("rope_theta", "model.decoder.pattern.0.mixer.position.theta"),
        ("model.decoder.repeat", "model.decoder.repeats"),
        ("num_hidden_layers", "model.decoder.repeats"),
        ("optimiser.peak_lr", "optimizer.peak_lr"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(name, near):
    with pytest.raises(UserError) as error:
        presets.overrides(SMOKE, [f"--{name}", "1"])
    assert str(error.value) == f"{name}: no such field; did you mean {near}?"


def test_a_run_remembers_any_config_that_options_can_make(tmp_path):
    config = changed("--optimizer.kind muon --optimizer.schedule wsd --model.decoder.remat full --data.path x")
    (tmp_path / "run.json").write_text(json.dumps({"config": encode(config)}))
    assert presets.load(str(tmp_path)) == config
