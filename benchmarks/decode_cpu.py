"""Greedy decoding beside `transformers`: tokens per CPU-second with one thread each.

Workload W1: Llama, d_model 256, 8 layers, 8 heads of 32, d_ff 688, vocabulary 8192 tied, f32, random weights.
Each side is a process of its own, pinned to one core; the two take turns, and one round's work is the same for both.

    python benchmarks/decode_cpu.py [--batch 1 8] [--new-tokens 128 224] [--repeats 7] [--core 1] [--json]
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.sides import VOCABULARY, Side, serve, w1, w1_transformers

PROMPT = 32
"""Tokens."""


def prompts(batch: int) -> list[list[int]]:
    return [[(7919 * (b + 1) * (t + 1)) % VOCABULARY for t in range(PROMPT)] for b in range(batch)]


def ours() -> Callable[[int, int], object]:
    import jax
    from flax import nnx

    from pretrain.models.generate.config import GREEDY
    from pretrain.models.generate.decode import generate
    from pretrain.models.transformer import Transformer

    model, key = Transformer(w1(), rngs=nnx.Rngs(0)), jax.random.key(0)
    return lambda batch, new: generate(model, prompts(batch), max_tokens=new, sampling=GREEDY, key=key)


def theirs() -> Callable[[int, int], object]:
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(w1_transformers()).eval()

    def run(batch: int, new: int):
        ids = torch.tensor(prompts(batch))
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0
            )
        assert out.shape == (batch, PROMPT + new)

    return run


def measure(batch: int, new: int, repeats: int, sides: dict[str, Side]) -> dict:
    first = {name: side(batch, new) for name, side in sides.items()}
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(side(batch, new))
    rate = {name: batch * new / statistics.median(s) for name, s in seconds.items()}
    pairs = [theirs / ours for ours, theirs in zip(seconds["pretrain"], seconds["transformers"])]
    return {
        "batch": batch,
        "new_tokens": new,
        "tokens_per_cpu_second": {name: round(r, 1) for name, r in rate.items()},
        "ratio": round(rate["pretrain"] / rate["transformers"], 2),
        "ratio_of_each_round": [round(p, 2) for p in pairs],
        "first_call_cpu_seconds": {name: round(s, 2) for name, s in first.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[128, 224])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=["pretrain", "transformers"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve({"pretrain": ours, "transformers": theirs}[args.serve](), args.core)
    sides = {name: Side(__file__, name, args.core) for name in ("pretrain", "transformers")}
    rows = [measure(b, n, args.repeats, sides) for b in args.batch for n in args.new_tokens]
    for side in sides.values():
        side.close()
    if args.json:
        return print(json.dumps(rows))
    print("tokens per CPU-second, one thread, median; first call (compilation, warm-up) in CPU seconds, apart")
    print("batch   new  pretrain  transformers  ratio      (rounds)  first calls")
    for r in rows:
        (mine, others), (a, b) = r["tokens_per_cpu_second"].values(), r["first_call_cpu_seconds"].values()
        rounds = f"{min(r['ratio_of_each_round'])}-{max(r['ratio_of_each_round'])}"
        row = f"{r['batch']:>5} {r['new_tokens']:>5} {mine:>9.0f} {others:>13.0f} {r['ratio']:>6.2f}"
        print(f"{row} {rounds:>13} {a:>6} {b:>5}")


if __name__ == "__main__":
    main()
