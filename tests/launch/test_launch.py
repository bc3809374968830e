"""Manifests say what the sites understand, and what cannot fit is not started."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pretrain import cli
from pretrain.errors import UserError
from pretrain.launch import jobset, sky, slurm, tpu_vm
from pretrain.launch.description import Launch
from pretrain.launch.emit import yaml
from pretrain.plan.chips import parse
from tests.launch.check import problems

SCHEMAS = Path(__file__).with_name("schemas")
TPU = Launch(
    name="llama",
    train=("runs.pretrain_llama_1b", "--steps", "20"),
    run="gs://bucket/llama",
    slice=parse("v5p-128"),
    image="gcr.io/me/pretrain",
    environment=(("NOTE", "it's here"),),
    project="me",
    zone="us-east5-a",
    retries=3,
    grace=120,
)
GPU = replace(TPU, slice=parse("h100:64"), run="/shared/llama", install="pretrain[cuda]")


def schema(name: str) -> dict:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


@pytest.mark.parametrize("launch", [TPU, GPU, replace(TPU, spot=True, partition="team")], ids=["tpu", "gpu", "spot"])
def test_a_jobset_has_the_fields_of_the_api(launch):
    found = jobset.jobset(launch)
    assert problems(found, schema("jobset_v1alpha2")) == []
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == launch.hosts
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 120


def test_a_schema_finds_what_is_wrong():
    found = jobset.jobset(TPU)
    found["spec"]["failurePolicy"]["maxRestart"] = 3
    found["spec"]["replicatedJobs"][0]["template"]["spec"]["parallelism"] = "16"
    del found["spec"]["replicatedJobs"][0]["name"]
    assert len(problems(found, schema("jobset_v1alpha2"))) == 3


def test_hosts_of_a_slice_and_their_chips():
    pod = jobset.jobset(TPU)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5p-slice",
        "cloud.google.com/gke-tpu-topology": "4x4x4",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    assert (TPU.hosts, GPU.hosts, replace(TPU, slice=parse("v5e:2x2")).hosts) == (16, 8, 1)


@pytest.mark.parametrize("launch", [TPU, GPU], ids=["tpu", "gpu"])
def test_a_sky_task_has_the_fields_of_the_specification(launch):
    found = sky.task(launch)
    assert problems(found, schema("skypilot_task")) == []
    assert found["num_nodes"] == (8 if launch is GPU else 1)


SCRIPTS = {
    "slurm": slurm.manifest(replace(GPU, partition="gpu")),
    "jobset": jobset._script(TPU),
    "tpu_vm": tpu_vm.startup(TPU),
    "tpu_vm without an image": tpu_vm.startup(replace(TPU, image=None)),
    "sky": sky.task(replace(GPU, image=None, venv="/shared/my venv"))["run"],
    "create": tpu_vm.manifest(TPU),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_reads_every_script(name, tmp_path):
    (tmp_path / "script").write_text(SCRIPTS[name])
    done = subprocess.run(["bash", "-n", tmp_path / "script"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_directives_of_sbatch():
    lines = SCRIPTS["slurm"].splitlines()
    directives = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line[:7] == "#SBATCH")
    assert lines[0] == "#!/bin/bash"
    assert directives == {
        "job-name": "llama",
        "nodes": "8",
        "ntasks-per-node": "1",
        "time": "1440",
        "requeue": "",
        "open-mode": "append",
        "signal": "TERM@120",
        "output": "%x-%j.log",
        "gpus-per-node": "8",
        "exclusive": "",
        "partition": "gpu",
    }
    assert all(line.startswith("#") for line in lines[: len(directives) + 1]), "sbatch stops at the first command"


@pytest.mark.parametrize("name", ["slurm", "jobset", "tpu_vm", "sky"])
def test_every_process_knows_the_first_one_and_itself(name):
    hosts = TPU.hosts if name in ("jobset", "tpu_vm") else GPU.hosts
    assert f"--processes {hosts}" in SCRIPTS[name]
    assert ":8476" in SCRIPTS[name]
    assert "--steps 20" in SCRIPTS[name]


def test_one_host_needs_no_coordinator():
    assert "--coordinator" not in slurm.manifest(replace(GPU, slice=parse("h100:8")))


def test_the_compilers_cache_lies_in_the_bucket_and_what_the_user_sets_wins():
    assert TPU.variables() == {"JAX_COMPILATION_CACHE_DIR": "gs://bucket/llama/xla", "NOTE": "it's here"}
    own = replace(GPU, environment=(("JAX_COMPILATION_CACHE_DIR", "/fast"),))
    assert own.variables() == {"JAX_COMPILATION_CACHE_DIR": "/fast", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}


def test_yaml_is_read_back():
    reader = pytest.importorskip("yaml")
    values = {
        "text": "two\n\n  lines\n",
        "open": "a\nb",
        "words": ["yes", "null", "1e3", "0x10", "a: b", "", "# no", "it's", "4x4x4", "gs://b/c", "-c", "a\\b"],
        "nested": [{"a": [], "b": {}, "c": [{"d": True}, {"e": 1.5}]}],
        "cloud.google.com/gke": "x",
        "1": None,
    }
    assert reader.safe_load(yaml(values)) == values
    assert reader.safe_load(jobset.manifest(TPU)) == jobset.jobset(TPU)
    assert reader.safe_load(sky.manifest(GPU)) == sky.task(GPU)


def test_a_queued_resource_names_what_it_orders():
    words = tpu_vm.create(replace(TPU, slice=parse("v5e-16"), spot=True))
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"} <= set(words)
    with pytest.raises(UserError, match="add --project"):
        tpu_vm.create(replace(TPU, zone=None))
    with pytest.raises(UserError, match="tpu-vm orders v4"):
        tpu_vm.create(GPU)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--name", "No_Name"), "name=No_Name"),
        (("--env", "A-B=1"), "['A-B']"),
        (("--env", "AB"), "write AB=1"),
        (("--image", "x", "--venv", "y"), "expected one of them"),
        (("--slice", "v5e-5"), "choose"),
        (("--retries", "-1"), "retries=-1"),
    ],
)
def test_what_is_wrong_is_one_line(capsys, words, said):
    assert cli.main(["launch", "runs.smoke", "--on", "slurm", "--dry-run", *words]) == 2
    assert said in capsys.readouterr().err


def test_what_cannot_fit_is_refused_unless_it_is_forced(capsys):
    words = ["launch", "runs.pretrain_llama_1b", "--on", "slurm", "--slice", "h100:8", "--dry-run"]
    words += ["--model.decoder.remat", "none", "--run", "/shared/x"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "does not fit h100:8" in said
    assert "--force" in said
    assert cli.main([*words, "--force"]) == 0
    assert "#SBATCH --gpus-per-node=8" in capsys.readouterr().out


def test_a_manifest_is_handed_to_the_sites_command(tmp_path, monkeypatch, capsys):
    bash = shutil.which("bash")
    fake = tmp_path / "sbatch"
    fake.write_text(f"#!{bash}\ncat > {tmp_path}/script\necho Submitted batch job 7\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert cli.main(["launch", "runs.smoke", "--on", "slurm", "--run", "/shared/smoke"]) == 0
    assert "Submitted batch job 7" in capsys.readouterr().out
    assert (tmp_path / "script").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=smoke\n")
    monkeypatch.setenv("PATH", "/nowhere")
    assert cli.main(["launch", "runs.smoke", "--on", "slurm", "--run", "/shared/smoke"]) == 2
    assert "found no command sbatch" in capsys.readouterr().err


def test_products_in_8_bits_bring_their_library(capsys):
    words = ["launch", "runs.smoke", "--on", "tpu-vm", "--slice", "v5e:4", "--dry-run", "--run", "gs://b/run"]
    words += ["--project", "p", "--zone", "z"]
    assert cli.main(words) == 0
    assert "pretrain[tpu]'" in capsys.readouterr().out
    assert cli.main([*words, "--model.decoder.matmul", "int8"]) == 0
    assert "pretrain[tpu,quant]'" in capsys.readouterr().out
