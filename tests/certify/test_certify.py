"""Runs are shrunk without losing a mechanism, and every mesh gives the step of one device, or says so."""

import json

import numpy as np
import pytest

from pretrain import cli, presets
from pretrain.certify import certify as module
from pretrain.certify.shrink import shrunk
from pretrain.errors import check
from pretrain.models.config import MoeConfig

FAMILIES = ("smoke", "smoke_bert", "smoke_t5", "smoke_mixtral", "smoke_deepseek")
SHORT = (
    "fsdp=4,tensor=2",
    "context=2,expert=2,fsdp=2",
    "context=2,attention=ring,tensor=2,data=2",
    "stage=2,context=4,attention=ring",
    "stage=2,expert=2,context=2",
    "dcn_data=2,fsdp=4",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shrunk_run_is_valid_and_keeps_its_kinds_of_blocks(name):
    config = presets.load_run(f"runs.{name}")
    small = shrunk(config)
    check(small.model)
    for old, new in zip(config.model.stack.periods, small.model.stack.periods):
        assert type(old.mixer) is type(new.mixer)
        assert type(old.mlp) is type(new.mlp)
        assert (old.pre, old.branch, old.residual) == (new.pre, new.branch, new.residual)
        if isinstance(old.mlp, MoeConfig):
            assert (old.mlp.router.score, bool(old.mlp.shared)) == (new.mlp.router.score, bool(new.mlp.shared))


def test_every_axis_has_legal_meshes():
    mixture = list(module.legal(shrunk(presets.load_run("runs.smoke_mixtral"))))
    for axis in module.AXES:
        assert any(getattr(mesh, axis) > 1 for mesh in mixture), axis
    dense = list(module.legal(shrunk(presets.load_run("runs.smoke"))))
    assert not any(mesh.expert > 1 for mesh in dense)


def test_a_mesh_that_gives_other_gradients_fails_the_check(capsys, monkeypatch):
    def step(config, mesh, devices):
        return {"a": np.ones(3) + (1e-3 if mesh.tensor > 1 else 0), "b": np.ones(2)}, 2.0

    monkeypatch.setattr(module, "step", step)
    words = ["certify", "runs.smoke", "--mesh", "fsdp=8", "--mesh", "fsdp=4,tensor=2", "--json"]
    assert cli.main(words) == cli.CHECK
    out, err = capsys.readouterr()
    assert [row["equal"] for row in json.loads(out)["meshes"]] == [True, False]
    assert "fsdp=4 tensor=2: gradient of a is off by 1.0e-03" in err


def test_a_mixture_gives_the_step_of_one_device_on_meshes_of_every_axis(capsys):
    words = [word for mesh in SHORT for word in ("--mesh", mesh)]
    assert cli.main(["certify", "runs.smoke_mixtral", *words, "--json"]) == cli.DONE
    facts = json.loads(capsys.readouterr().out)
    assert len(facts["meshes"]) == len(SHORT)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_step_of_one_device_on_every_legal_mesh(name, capsys):
    assert cli.main(["certify", f"runs.{name}", "--json"]) == cli.DONE
    assert len(json.loads(capsys.readouterr().out)["meshes"]) > 10


def test_made_up_rows_are_those_of_the_objective():
    for name in FAMILIES:
        rows = module.made_up(shrunk(presets.load_run(f"runs.{name}")))
        assert {len(array) for array in rows.values()} == {16}
