"""The same bytes through Slurm and Ray. Slurm is played by three scripts that do what sbatch, srun and squeue do."""

import os
import sys

import pytest

from pretrain.data.config import JsonLines
from pretrain.data.recipe.config import Local, Ray, Slurm
from pretrain.data.write import prepare
from pretrain.errors import UserError, problems
from tests.data.conftest import corpus_of
from tests.data.test_recipe import REPOSITORY, cleaned, corpus, dirty  # noqa: F401 (fixtures)
from tests.data.test_write import content

pytest.importorskip("datatrove")

SBATCH = """#!/bin/bash
script="${@: -1}"
grep '^#SBATCH' "$script" >> "$FAKE_SLURM/asked"
last=$(grep -o 'array=0-[0-9]*' "$script" | grep -o '[0-9]*$')
export SLURM_NODELIST=one SLURM_CPUS_PER_TASK=1 SLURM_MEM_PER_CPU=1024
for i in $(seq 0 $last); do
  SLURM_ARRAY_TASK_ID=$i bash "$script" >> "$FAKE_SLURM/log" 2>&1 || true
done
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" != launch_pickled_pipeline ]]; do shift; done
exec %s -m datatrove.tools.launch_pickled_pipeline "$2"
"""
SCONTROL = "#!/bin/bash\necho one\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name, text in (
        ("sbatch", SBATCH),
        ("srun", SRUN % sys.executable),
        ("squeue", "#!/bin/bash\n"),
        ("scontrol", SCONTROL),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


def test_slurm_gives_the_bytes_of_one_machine_also_after_it_lost_tasks(dirty, cleaned, slurm):  # noqa: F811
    executor = Slurm(partition="cpu", time="1:00:00", tasks_per_job=9, gigabytes_per_cpu=5, poll=0.01)
    whole = (slurm / "sbatch").read_text()
    (slurm / "sbatch").write_text("#!/bin/bash\necho Submitted batch job 7\n")
    with pytest.raises(UserError, match=r"found . of . tasks of 00-documents failed, expected none; read .*/logs/00-"):
        prepare(corpus(dirty), slurm / "c", executor=executor)
    (slurm / "sbatch").write_text(whole)
    prepare(corpus(dirty), slurm / "c", executor=executor)
    assert content(slurm / "c") == content(cleaned), (slurm / "log").read_text()[-3000:]
    asked = (slurm / "asked").read_text().splitlines()
    for option in ("--partition=cpu", "--time=1:00:00", "--mem-per-cpu=5G", "--array=0-1", "--job-name=tokenize"):
        assert f"#SBATCH {option}" in asked


def test_slurm_that_is_not_there_is_an_error(dirty, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(
        UserError, match=r"found that sbatch failed .*, expected a Slurm cluster; run it where it works"
    ):
        prepare(corpus(dirty), tmp_path / "c", executor=Slurm(partition="cpu"))
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    with pytest.raises(UserError, match="found a task of a Slurm array, expected a login node"):
        prepare(corpus(dirty), tmp_path / "c", executor=Slurm(partition="cpu"))


@pytest.mark.slow
def test_ray_gives_the_bytes_of_one_machine(dirty, cleaned, tmp_path, monkeypatch):  # noqa: F811
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    try:
        prepare(corpus(dirty), tmp_path / "c", executor=Ray(workers=2, tasks_per_job=2, gigabytes_per_cpu=1))
    finally:
        ray.shutdown()
    assert content(tmp_path / "c") == content(cleaned)


def test_tasks_elsewhere_need_whole_paths(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    relative = corpus_of(tmp_path, source=JsonLines(paths=("a.jsonl",)))
    with pytest.raises(
        UserError, match=r"found the relative path a\.jsonl for Slurm, expected paths that begin with /"
    ):
        prepare(relative, tmp_path / "c", executor=Slurm(partition="cpu"))


def test_wrong_executors_are_reported():
    assert list(problems(Local())) == []
    wrong = Slurm(partition="", workers=0, tasks_per_job=0, poll=0)
    assert [p.split("=")[0] for p in problems(wrong)] == ["partition", "workers", "tasks_per_job", "poll"]
    assert [p.split("=")[0] for p in problems(Ray(gigabytes_per_cpu=0))] == ["gigabytes_per_cpu"]
