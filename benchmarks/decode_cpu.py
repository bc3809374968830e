"""Greedy decoding beside `transformers`: tokens per CPU-second with one thread each.

Workload W1: Llama, d_model 256, 8 layers, 8 heads of 32, d_ff 688, vocabulary 8192 tied, f32, random weights.
Each side is a process of its own, pinned to one core; the two take turns, and one round's work is the same for both.

    python benchmarks/decode_cpu.py [--batch 1 8] [--new-tokens 128 224] [--repeats 7] [--core 1] [--json]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PROMPT, VOCABULARY, D_MODEL, LAYERS, HEADS, D_FF = 32, 8192, 256, 8, 8, 688


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def prompts(batch: int) -> list[list[int]]:
    return [[(7919 * (b + 1) * (t + 1)) % VOCABULARY for t in range(PROMPT)] for b in range(batch)]


def ours() -> Callable[[int, int], object]:
    import jax
    from flax import nnx

    from pretrain.configs.llama import llama
    from pretrain.models.generate.config import GREEDY
    from pretrain.models.generate.decode import generate
    from pretrain.models.transformer import Transformer

    config = llama(vocab_size=VOCABULARY, d_model=D_MODEL, layers=LAYERS, heads=HEADS, d_ff=D_FF, tied=True)
    model, key = Transformer(config, rngs=nnx.Rngs(0)), jax.random.key(0)
    return lambda batch, new: generate(model, prompts(batch), max_tokens=new, sampling=GREEDY, key=key)


def theirs() -> Callable[[int, int], object]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=D_FF,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()

    def run(batch: int, new: int):
        ids = torch.tensor(prompts(batch))
        mask = torch.ones_like(ids)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True, pad_token_id=0
            )
        assert out.shape == (batch, PROMPT + new)

    return run


def serve(side: str, core: int) -> None:
    """Answers each line `batch new_tokens` with the CPU seconds it took."""
    os.sched_setaffinity(0, {core})
    run = {"pretrain": ours, "transformers": theirs}[side]()
    for line in sys.stdin:
        batch, new = map(int, line.split())
        start = cpu_seconds()
        run(batch, new)
        print(cpu_seconds() - start, flush=True)


class Side:
    def __init__(self, name: str, core: int):
        environment = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--serve", name, "--core", str(core)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def __call__(self, batch: int, new: int) -> float:
        self.process.stdin.write(f"{batch} {new}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return float(answer)


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
        return serve(args.serve, args.core)
    sides = {name: Side(name, args.core) for name in ("pretrain", "transformers")}
    rows = [measure(b, n, args.repeats, sides) for b in args.batch for n in args.new_tokens]
    for side in sides.values():
        side.process.stdin.close()
        side.process.wait()
    if args.json:
        return print(json.dumps(rows))
    print("tokens per CPU-second, one thread, median; first call (compilation, warm-up) in CPU seconds, apart")
    print("batch   new  pretrain  transformers  ratio      (rounds)  first calls")
    for r in rows:
        (ours, theirs), (a, b) = r["tokens_per_cpu_second"].values(), r["first_call_cpu_seconds"].values()
        rounds = f"{min(r['ratio_of_each_round'])}-{max(r['ratio_of_each_round'])}"
        row = f"{r['batch']:>5} {r['new_tokens']:>5} {ours:>9.0f} {theirs:>13.0f} {r['ratio']:>6.2f}"
        print(f"{row} {rounds:>13} {a:>6} {b:>5}")


if __name__ == "__main__":
    main()
