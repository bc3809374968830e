"""The real train step beside `transformers` on torch: tokens per CPU-second with one thread each.

Workload W1: Llama, d_model 256, 8 layers, 8 heads of 32, d_ff 688, vocabulary 8192 tied, sequence 256, batch 16, AdamW
with clipping and decay, f32. Ours is `pretrain.step.make_step` as `pretrain train` runs it: scanned layers, packed rows
with segments, chunked loss, finite check. Theirs is LlamaForCausalLM with scaled-dot-product attention.
Also prints the seconds from `pretrain train runs.smoke` to its first step, without and with the compilation cache.

    python benchmarks/train_cpu.py [--repeats 9] [--core 1] [--json] [--no-start]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sides import LAYERS, VOCABULARY, Side, serve, w1, w1_transformers

BATCH, LENGTH = 16, 256


def tokens():
    import numpy as np

    return np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, LENGTH + 1), dtype=np.int32)


def program():
    """(compiled step, state, batch on the device) of W1, as `pretrain train` has them."""
    from pretrain.sharding.processes import keep_memory

    keep_memory()  # as `pretrain train` does, before jax

    import jax
    import numpy as np

    from pretrain.config import BatchConfig, RunConfig
    from pretrain.data.config import CorpusConfig, DataConfig, StandardLibrary
    from pretrain.feed import Feed
    from pretrain.objectives.build import build
    from pretrain.optimizer.config import Constant, OptimizerConfig
    from pretrain.sharding import mesh as meshes
    from pretrain.sharding import place
    from pretrain.sharding.mesh import MeshConfig
    from pretrain.state import create, make_optimizer
    from pretrain.step import make_step

    model = w1()
    config = RunConfig(
        model=replace(model, decoder=replace(model.decoder, unroll=LAYERS)),
        data=DataConfig(corpus=CorpusConfig(source=StandardLibrary()), sequence_length=LENGTH),
        optimizer=OptimizerConfig(peak_lr=3e-4, schedule=Constant(warmup_steps=0)),
        batch=BatchConfig(rows=BATCH),
        steps=1000,
    )
    mesh = meshes.build(MeshConfig())
    ids = tokens()
    batch = {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH)),
        "segments": np.ones((BATCH, LENGTH), np.int32),
        "weights": np.ones((BATCH, LENGTH), np.float32),
    }
    with place.use(mesh, place.NOWHERE):
        optimizer = make_optimizer(config, np.float32)
        state = create(config, optimizer, np.float32, mesh)
        step = jax.jit(make_step(build(config.objective), optimizer, 1, config.health), donate_argnums=0)
        feed = Feed(mesh, BATCH)
        compiled = step.lower(state, feed.on_device(batch)).compile()
    return compiled, state, lambda: feed.on_device(batch)


def ours() -> Callable[[], object]:
    compiled, state, batch = program()

    def run() -> float:
        nonlocal state
        state, metrics = compiled(state, batch())
        return float(metrics["loss"])

    return run


def theirs() -> Callable[[], object]:
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(w1_transformers(max_position_embeddings=LENGTH, attn_implementation="sdpa")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1)
    ids = torch.from_numpy(tokens()).long()

    def run() -> float:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return run


def compare(repeats: int, core: int) -> dict:
    sides = {name: Side(__file__, name, core) for name in ("pretrain", "transformers")}
    for side in sides.values():
        side(), side()
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(side())
    for side in sides.values():
        side.close()
    rate = {name: BATCH * LENGTH / statistics.median(s) for name, s in seconds.items()}
    pairs = [theirs / ours for ours, theirs in zip(seconds["pretrain"], seconds["transformers"])]
    return {
        "tokens_per_cpu_second": {name: round(r, 1) for name, r in rate.items()},
        "ratio": round(rate["pretrain"] / rate["transformers"], 3),
        "ratio_of_each_round": [round(p, 3) for p in sorted(pairs)],
    }


def seconds_to_first_step() -> dict[str, float]:
    """Of `pretrain train runs.smoke --steps 12` with its corpus prepared: wall seconds from the start of the job."""
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("corpus", "cold", "cached"):
            cache = os.path.join(folder, "corpus-cache" if name == "corpus" else "cache")
            command = [sys.executable, "-m", "pretrain", "train", "runs.smoke", "--run", f"{folder}/{name}"]
            command += ["--steps", "12", "--data.path", f"{folder}/data", "--log.tensorboard", "False"]
            environment = os.environ | {"XDG_CACHE_HOME": cache}
            subprocess.run(
                command, check=True, env=environment, cwd=Path(__file__).resolve().parents[1], capture_output=True
            )
            events = [json.loads(line) for line in Path(f"{folder}/{name}/events.jsonl").read_text().splitlines()]
            out[name] = round(next(e["since_start"] for e in events if e["kind"] == "compiled"), 2)
    return {name: out[name] for name in ("cold", "cached")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-start", action="store_true", help="leave out the time to the first step")
    parser.add_argument("--serve", choices=["pretrain", "transformers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve({"pretrain": ours, "transformers": theirs}[args.serve](), args.core)
    result = compare(args.repeats, args.core)
    if not args.no_start:
        result["seconds_to_first_step"] = seconds_to_first_step()
    if args.json:
        return print(json.dumps(result))
    rates = result["tokens_per_cpu_second"]
    print(f"tokens per CPU-second  pretrain {rates['pretrain']:.0f}  transformers {rates['transformers']:.0f}")
    print(f"ratio {result['ratio']} (rounds {result['ratio_of_each_round'][0]} to {result['ratio_of_each_round'][-1]})")
    if not args.no_start:
        first = result["seconds_to_first_step"]
        print(f"seconds from `pretrain train` to the first step: cold {first['cold']}, cached {first['cached']}")


if __name__ == "__main__":
    main()
