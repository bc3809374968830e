"""Every command of the documentation is run, page by page, in the order in which a reader would paste it.

```sh      lines that start with `pretrain` or `python`; `# exit 2` behind one is the exit code that it must have;
           a line that ends in `&` runs beside those below it, until the end of its block
```python  run; with a file name behind the word (`python my_run.py`), written to that file instead
```TAG FILE  any other block with a file name is written to that file
```text    what one sees, `...` for what is left out; an error of a line with `# exit 2` must be shown there
```console and so on are only read: what needs a pod, a keyboard or a kill
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"]
FIRST = (
    "pretrain train runs.smoke --run runs/try --steps 12 --model.decoder.repeats 2 --optimizer.schedule.warmup-steps 2"
)
"""Most pages begin with this run. `first_run.md` trains it; the others find it trained, so that it costs nothing."""
OWN_PROCESS = ("--simulate", "--coordinator")
"""Options that decide JAX's devices, which a process can do once."""
TIMEOUT = 300  # seconds of one line that runs in a process of its own


@dataclass(frozen=True)
class Block:
    tag: str
    file: str | None
    line: int
    text: str


@dataclass(frozen=True)
class Command:
    words: list[str]
    code: int
    background: bool
    line: int


def blocks(page: str) -> list[Block]:
    found, start, info = [], None, ""
    lines = page.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if start is None:
            start, info = number, line[3:].strip()
        else:
            tag, _, file = info.partition(" ")
            found.append(Block(tag, file or None, start, "\n".join(lines[start : number - 1]) + "\n"))
            start = None
    assert start is None, f"line {start}: a fence that does not end"
    return found


def commands(block: Block) -> list[Command]:
    """Raises ValueError for a line that would not be run."""
    found = []
    for at, line in enumerate(re.sub(r"\\\n\s*", " ", block.text).splitlines()):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] not in ("pretrain", "python"):
            raise ValueError(f"{line!r}: expected pretrain or python; use ```console for what is not run")
        exit_code = re.search(r"# exit (\d+)", line)
        background = words[-1] == "&"
        code = int(exit_code[1]) if exit_code else 0
        found.append(Command(words[:-1] if background else words, code, background, block.line + at + 1))
    return found


def pattern_of(line: str) -> re.Pattern:
    """What a line of a text block stands for; `...` is anything, but never all of a line."""
    return re.compile(r"[^\s\S]" if line.strip(" .") == "" else ".*".join(map(re.escape, line.split("..."))))


class Worker:
    """A process on one device that calls `pretrain.cli.main`; see worker.py."""

    def __init__(self, environment: dict[str, str]):
        command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
        )

    def ask(self, **request) -> tuple[int, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the worker died of {request}"
        facts = json.loads(answer)
        return facts["code"], facts["output"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """That of a reader: one device, and `pretrain` importable."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "100",
    }


@pytest.fixture(scope="session")
def worker(environment):
    worker = Worker(environment)
    yield worker
    worker.close()


@pytest.fixture(scope="session")
def trained(worker, tmp_path_factory) -> Path:
    """A working directory in which FIRST has run."""
    folder = tmp_path_factory.mktemp("trained")
    code, output = worker.ask(cwd=str(folder), page="trained", argv=shlex.split(FIRST)[1:])
    assert code == 0, output
    return folder


def _missing(code: str) -> list[str]:
    """Optional packages that a block imports and this environment does not have."""
    imported = set(re.findall(r"^\s*(?:from|import) (torch|transformers)\b", code, re.MULTILINE))
    return [name for name in imported if importlib.util.find_spec(name) is None]


class Reader:
    """Somebody who pastes a page into a terminal."""

    def __init__(self, page: Path, folder: Path, worker: Worker, environment: dict[str, str]):
        self.page, self.folder, self.worker, self.environment = page.name, folder, worker, environment
        self.shown = [
            pattern_of(line) for b in blocks(page.read_text()) if b.tag == "text" for line in b.text.splitlines()
        ]

    def paste(self, block: Block) -> None:
        if block.file is not None:
            path = self.folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        elif block.tag == "python" and not _missing(block.text):
            code, output = self.worker.ask(cwd=str(self.folder), page=self.page, code=block.text)
            self._judge(f"line {block.line}", 0, code, output)
        elif block.tag == "sh":
            self._shell(commands(block))

    def _shell(self, lines: list[Command]) -> None:
        beside = []
        for command in lines:
            if command.background:
                beside.append((command, self._start(command)))
                continue
            alone = beside or command.words[0] == "python" or any(w in OWN_PROCESS for w in command.words)
            if alone:
                self._finish(command, self._start(command))
            else:
                code, output = self.worker.ask(cwd=str(self.folder), page=self.page, argv=command.words[1:])
                self._judge(f"line {command.line}: {shlex.join(command.words)}", command.code, code, output)
        for command, process in beside:
            self._finish(command, process)

    def _start(self, command: Command) -> subprocess.Popen:
        module = ["-m", "pretrain"] if command.words[0] == "pretrain" else []
        return subprocess.Popen(
            [sys.executable, *module, *command.words[1:]],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def _finish(self, command: Command, process: subprocess.Popen) -> None:
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        self._judge(f"line {command.line}: {shlex.join(command.words)}", command.code, process.returncode, output)

    def _judge(self, where: str, expected: int, code: int, output: str) -> None:
        print(f"$ {self.page} {where}\n{output}")
        assert code == expected, f"{self.page} {where}\nexit code {code}, expected {expected}:\n{output}"
        shown = [line for line in output.splitlines() if any(pattern.fullmatch(line) for pattern in self.shown)]
        assert code == 0 or shown, f"{self.page} {where}\nno text block of the page shows this error:\n{output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_a_page_does_what_it_says(page, worker, environment, tmp_path, request):
    text = page.read_text()
    runnable = [b for b in blocks(text) if b.file or b.tag in ("sh", "python")]
    if not runnable:
        pytest.skip("nothing to run")
    if page.name != "first_run.md" and FIRST in re.sub(r"\\\n\s*", "", text):
        shutil.copytree(request.getfixturevalue("trained"), tmp_path, dirs_exist_ok=True)
    reader = Reader(page, tmp_path, worker, environment)
    for block in runnable:
        reader.paste(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [p.name for p in PAGES if p.parent.name == "docs" and p.name != "README.md"]
    assert [name for name in pages if f"({name})" not in index] == []


def test_a_line_that_would_not_be_run_is_an_error():
    with pytest.raises(ValueError, match="expected pretrain or python"):
        commands(Block("sh", None, 1, "cd somewhere\n"))
