"""The rules of the house that a machine can check."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = {"sharding": 0, "models": 1, "pretrain": 2, "launch": 2, "posttrain": 3, "configs": 4}
CODE = [*FLOORS, "tests", "benchmarks"]


def files(*folders: str) -> list[Path]:
    """Every Python file once: the links inside pretrain/ are not followed."""
    links = [ROOT / "pretrain" / name for name in FLOORS if (ROOT / "pretrain" / name).is_symlink()]
    found = [p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))]
    return [p for p in found if not any(link in p.parents for link in links)]


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    for n in ast.walk(tree):
        if isinstance(n, ast.ImportFrom) and n.module and not n.level:
            names |= {n.module, *(f"{n.module}.{a.name}" for a in n.names)}
    return names


def floor_of(module: str) -> int | None:
    """None: not ours, or what every floor may use: errors, and files that others wrote."""
    parts = module.split(".")
    if parts[0] != "pretrain" or parts[1:2] in ([], ["errors"], ["untrusted"], ["__version__"]):
        return None
    return FLOORS[parts[1]] if parts[1] in FLOORS else FLOORS["pretrain"]


@pytest.mark.parametrize("folder", FLOORS)
def test_imports_point_down(folder):
    allowed_presets = {"presets.py", "demo.py"}  # load configs by name; they are the command line's
    upward = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(folder)
        for module in imports(path)
        if (floor := floor_of(module)) is not None and floor > FLOORS[folder] and path.name not in allowed_presets
    ]
    assert not upward


def test_everything_is_imported_by_its_full_name():
    bare = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files(*CODE)
        for module in imports(path)
        if module.split(".")[0] in ("models", "sharding", "configs", "posttrain", "launch")
    ]
    assert not bare


def test_files_and_functions_stay_short():
    long = []
    for path in files(*CODE):
        text = path.read_text()
        if (lines := text.count("\n")) > 400:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:
                long.append(f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines")
    assert not long


def test_no_folder_is_a_drawer():
    drawers = {"utils", "common", "core", "misc", "helpers"}
    found = [
        p for folder in CODE for p in (ROOT / folder).rglob("*") if p.stem in drawers and "__pycache__" not in p.parts
    ]
    assert not found


def test_the_readme_tree_names_every_module():
    tree = (ROOT / "README.md").read_text().split("```tree")[1].split("```")[0]
    missing = []
    for path in files(*FLOORS):
        name = path.stem if path.name != "__init__.py" else path.parent.name
        if not re.search(rf"\b{re.escape(name)}\b", tree):
            missing.append(str(path.relative_to(ROOT)))
    assert not missing


def test_a_wheel_holds_only_the_package_and_all_of_it(tmp_path):
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # setuptools keeps what an earlier tree had
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"pretrain"}
    have = {n for n in names if n.endswith(".py")}
    want = {
        str(p.relative_to(ROOT)) if folder == "pretrain" else f"pretrain/{p.relative_to(ROOT)}"
        for folder in FLOORS
        for p in files(folder)
    }
    assert have == want
    assert "pretrain/report/page.html" in names
