"""Two programs that take turns: each in a process of its own on one core with one thread, measured in CPU seconds."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

VOCABULARY, D_MODEL, LAYERS, HEADS, D_FF = 8192, 256, 8, 8, 688
"""Workload W1: a Llama with tied embeddings, f32."""


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def w1():
    from pretrain.configs.llama import llama

    return llama(vocab_size=VOCABULARY, d_model=D_MODEL, layers=LAYERS, heads=HEADS, d_ff=D_FF, tied=True)


def w1_transformers(**more):
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        intermediate_size=D_FF,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )


def serve(run: Callable[..., object], core: int) -> None:
    """Answers each line of integers with the CPU seconds that `run` of them took."""
    os.sched_setaffinity(0, {core})
    for line in sys.stdin:
        start = cpu_seconds()
        run(*map(int, line.split()))
        print(cpu_seconds() - start, flush=True)


class Side:
    """A process that runs `script --serve NAME --core N`."""

    def __init__(self, script: str, name: str, core: int):
        environment = os.environ | {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
        environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, script, "--serve", name, "--core", str(core)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=environment, text=True, **pipes)

    def __call__(self, *work: int) -> float:
        self.process.stdin.write(" ".join(map(str, work)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return float(answer)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
