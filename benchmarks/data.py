"""Tokens per CPU second of packed batches, and MB per CPU second of tokenisation, beside other libraries.

    python benchmarks/data.py                    mosaicml-streaming and datasets join where installed
    python benchmarks/data.py --rounds 3 --millions 8 --text 4

Every loader reads the same documents in a process of its own on one core, a batch of 8 rows of 2049 tokens (int32) a
time, in random order; they take turns. Ours gives tokens, targets, positions, segments and weights, and checks records.
Libraries give rows of tokens; what is missing is made of them by our own `pack`, from the places of the end-of-text
token. "tokens alone" leaves that out, and is not compared.
Prints one line a loader and a summary as JSON; exit code 3 where ours is not first of the libraries or under a target.
"""

import argparse
import functools
import importlib.machinery
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ |= {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

ROWS, TOKENS, VOCABULARY, END = 8, 2049, 30_000, 2
TARGET, RATIO = 10e6, 0.9
"""Tokens a CPU second; MB a CPU second of ours over that of `tokenizers` alone."""

Batches = Iterator[np.ndarray]


def documents(millions: float) -> list[np.ndarray]:
    """Lengths as of web pages: log-normal, 400 tokens in the middle."""
    draw, left, out = np.random.default_rng(0), int(millions * 1e6), []
    while left > 0:
        out.append(draw.integers(4, VOCABULARY, int(np.clip(draw.lognormal(6, 1), 8, 20_000))).astype(np.uint16))
        out[-1][-1] = END
        left -= len(out[-1])
    return out


def ours(folder: Path, texts: list[np.ndarray], *, prefetch: bool) -> Batches:
    """Rows of 2049: 2048 tokens and the one that follows."""
    from pretrain.data.pack import Packed
    from pretrain.data.pipeline import Pipeline
    from pretrain.data.windows import Split
    from tests.data.stored import write_split

    if not (folder / "manifest.json").exists():
        write_split(folder, [[t.tolist() for t in texts]], TOKENS - 1)
    pipeline = Pipeline(Split(folder, "train"), Packed(TOKENS - 1), ROWS)
    for batch in pipeline.iterate(0, read_threads=int(prefetch)):
        yield batch["tokens"]


def packed(loader: Callable[..., Batches], folder: Path, records: np.ndarray) -> Batches:
    """The batches of a loader of tokens with all that a model needs beside them."""
    from pretrain.data.pack import pack

    lengths = np.full(ROWS, TOKENS - 1)
    for tokens in loader(folder, records):
        starts = np.zeros(tokens.shape, bool)
        starts[:, 1:] = tokens[:, :-1] == END
        pack(tokens, starts, lengths)
        yield tokens


def memmap(folder: Path, records: np.ndarray) -> Batches:
    records.tofile(folder / "tokens")
    stored, draw = np.memmap(folder / "tokens", np.uint16, "r").reshape(-1, TOKENS), np.random.default_rng(0)
    while True:
        yield stored[draw.integers(0, len(stored), ROWS)].astype(np.int32)


def array_record(folder: Path, records: np.ndarray) -> Batches:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(_written(folder, records)), "readahead_buffer_size:0")
    draw = np.random.default_rng(0)
    while True:
        rows = reader.read(draw.integers(0, len(records), ROWS).tolist())
        yield np.stack([np.frombuffer(row, np.uint16) for row in rows]).astype(np.int32)


def grain_loader(folder: Path, records: np.ndarray, *, tuned: bool) -> Batches:
    import grain

    def decode(row: bytes) -> np.ndarray:
        return np.frombuffer(row, np.uint16).astype(np.int32)

    source = grain.sources.ArrayRecordDataSource([str(_written(folder, records))])
    dataset = grain.MapDataset.source(source).shuffle(seed=0).repeat(None).map(decode).batch(ROWS)
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0) if tuned else None
    return iter(dataset.to_iter_dataset(options))


def mosaic(folder: Path, records: np.ndarray) -> Batches:
    _without_images()
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(out=str(folder / "mds"), columns={"tokens": f"ndarray:uint16:{TOKENS}"}) as writer:
        for row in records:
            writer.write({"tokens": row})
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=True, batch_size=ROWS)
    rows = itertools.chain.from_iterable(dataset for _ in itertools.repeat(None))
    while True:
        yield np.stack([row["tokens"] for row in itertools.islice(rows, ROWS)]).astype(np.int32)


def _without_images() -> None:
    """Names for what MosaicML imports of torchvision, for images: the real one wants a certain build of torch."""
    names = {"transforms": {}, "transforms.functional": {"to_tensor": None}, "datasets": {"VisionDataset": object}}
    for name, values in {"": {}, **names}.items():
        module = types.ModuleType(f"torchvision.{name}".rstrip("."))
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        vars(module).update(values, __path__=[])
        sys.modules[module.__name__] = module


def hugging_face(folder: Path, records: np.ndarray) -> Batches:
    import datasets

    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=TOKENS)})
    datasets.Dataset.from_dict({"tokens": records}, features=features).save_to_disk(str(folder / "hf"))
    stored = datasets.load_from_disk(str(folder / "hf")).with_format("numpy")
    for epoch in itertools.count():
        for batch in stored.shuffle(seed=epoch).iter(ROWS, drop_last_batch=True):
            yield np.asarray(batch["tokens"], np.int32)


def _written(folder: Path, records: np.ndarray) -> Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / "records.array_record"
    if not path.exists():
        writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        for row in records:
            writer.write(row.tobytes())
        writer.close()
    return path


LOADERS: dict[str, tuple[str, Callable[..., Batches]]] = {
    "ours": ("pretrain", functools.partial(ours, prefetch=False)),
    "ours, a thread ahead": ("pretrain", functools.partial(ours, prefetch=True)),
    "numpy memmap": ("numpy", memmap),
    "ArrayRecord": ("array_record", array_record),
    "Grain, defaults": ("grain", functools.partial(packed, functools.partial(grain_loader, tuned=False))),
    "Grain, tuned": ("grain", functools.partial(packed, functools.partial(grain_loader, tuned=True))),
    "MosaicML": ("streaming", functools.partial(packed, mosaic)),
    "datasets": ("datasets", functools.partial(packed, hugging_face)),
    "Grain, tuned, tokens alone": ("grain", functools.partial(grain_loader, tuned=True)),
    "datasets, tokens alone": ("datasets", hugging_face),
}
"""The package that each needs, and its batches."""


def serve(name: str, millions: float) -> None:
    """Answers each number of batches, once they are read, with the CPU seconds of this process and all its threads."""
    texts = documents(millions)
    with tempfile.TemporaryDirectory() as folder:
        stream = np.concatenate(texts)
        records = stream[: len(stream) // TOKENS * TOKENS].reshape(-1, TOKENS)
        batches = LOADERS[name][1](Path(folder), texts if name.startswith("ours") else records)
        for line in sys.stdin:
            read = sum(next(batches).size for _ in range(int(line)))
            print("read", read, time.process_time(), flush=True)
        os._exit(0)  # threads of some libraries would complain that their files are gone


def rates(options: argparse.Namespace) -> dict[str, float]:
    """Median over the rounds of tokens a CPU second; what a loader reads ahead between its turns is counted too."""
    command = [sys.executable, __file__, "--millions", str(options.millions), "--serve"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    names = [name for name, (package, _) in LOADERS.items() if importlib.util.find_spec(package)]
    sides = {name: subprocess.Popen([*command, name], **pipes) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    before: dict[str, float] = {}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, side in sides.items():
            tokens, seconds = _ask(side, options.batches)
            if turn:
                found[name].append(tokens / (seconds - before[name]))
            before[name] = seconds
    for side in sides.values():
        side.communicate()
    return {name: statistics.median(values) for name, values in found.items()}


def _ask(side: subprocess.Popen, batches: int) -> tuple[int, float]:
    side.stdin.write(f"{batches}\n")
    side.stdin.flush()
    for line in side.stdout:
        if line.startswith("read "):  # libraries print too
            return int(line.split()[1]), float(line.split()[2])
    raise SystemExit(f"{side.args} ended with {side.wait()}")


def tokenisation(folder: Path, megabytes: float, rounds: int) -> dict[str, float]:
    """MB a CPU second of `data prepare` with one worker, from JSON Lines to shards, and of `tokenizers` alone."""
    import tokenizers

    from pretrain.data.config import CorpusConfig, JsonLines, StandardLibrary, TokenizerFile
    from pretrain.data.sources import list_files, read_files
    from pretrain.data.write import prepare

    source, texts, left = StandardLibrary(tests=True), [], int(megabytes * 1e6)
    for document in read_files(source, [file for file, _ in list_files(source)], Counter()):
        texts.append(document.text)
        left -= len(document.text.encode())
        if left <= 0:
            break
    size = sum(len(t.encode()) for t in texts) / 1e6
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator(texts[:100], vocab_size=8192, special_tokens=["<|endoftext|>"], show_progress=False)
    model.save(str(folder / "tokenizer.json"))
    alone = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    path = TokenizerFile(path=str(folder / "tokenizer.json"))
    corpus = CorpusConfig(source=JsonLines(paths=(str(folder / "texts.jsonl"),)), tokenizer=path)

    def library() -> None:
        for begin in range(0, len(texts), 64):
            [e.ids for e in alone.encode_batch_fast(texts[begin : begin + 64], add_special_tokens=False)]

    found: dict[str, list[float]] = {"prepare": [], "tokenizers": []}
    for turn in range(rounds):
        here = folder / f"out{turn}"
        work: dict[str, Callable] = {"prepare": lambda to=here: prepare(corpus, to), "tokenizers": library}
        for name, run in work.items():
            began = time.process_time()
            run()
            found[name].append(size / (time.process_time() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=300, help="of each loader in a round")
    parser.add_argument("--millions", type=float, default=30, help="of tokens in the corpus")
    parser.add_argument("--text", type=float, default=10, help="MB to tokenize; 0: none")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    if options.serve:
        serve(options.serve, options.millions)
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), rates(options)
        for side, rate in sorted(found.items(), key=lambda kv: -kv[1]):
            print(f"{side:<28}{rate / 1e6:8.1f} M tokens a CPU second", flush=True)
        speed = tokenisation(folder, options.text, min(options.rounds, 3)) if options.text else {}
    for side, rate in speed.items():
        print(f"{side:<28}{rate:8.2f} MB a CPU second")
    bare = ("ours", "ours, a thread ahead", "numpy memmap", "ArrayRecord")
    libraries = {name: rate for name, rate in found.items() if name not in bare and not name.endswith("tokens alone")}
    ratio = speed["prepare"] / speed["tokenizers"] if speed else None
    summary = {
        "tokens_per_cpu_second": {k: round(v) for k, v in found.items()},
        "ahead_of_libraries": found["ours"] > max(libraries.values()),
        "megabytes_per_cpu_second": speed,
        "ratio": ratio,
    }
    print(json.dumps(summary))
    reached = found["ours"] >= TARGET and summary["ahead_of_libraries"] and (ratio is None or ratio >= RATIO)
    return 0 if reached else 3


if __name__ == "__main__":
    sys.exit(main())
