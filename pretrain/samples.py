"""What the model says at this step, in samples/STEP.md."""

import time
from typing import TYPE_CHECKING

import jax

from pretrain.models.generate.config import GREEDY
from pretrain.models.generate.decode import generate
from pretrain.models.generate.fill import fill
from pretrain.models.transformer import Transformer
from pretrain.texts import Reader

if TYPE_CHECKING:
    from pretrain.job import Job


def write_samples(job: "Job", model: Transformer, step: int) -> None:
    """Greedy continuations of the prompts of the config, answers to them where the model reads one text and writes
    another, masks filled where it is an encoder. Skipped on more than one device."""
    prompts = job.config.evals.prompts
    if not prompts or jax.device_count() > 1:
        return
    began = time.perf_counter()
    reader = Reader.of_run(job.config, job.tokenizer)
    said = filled(reader, model, prompts) if model.decoder is None else written(reader, model, prompts, job)
    folder = job.run / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# step {step}"]
    parts += [f"```text\n{prompt}⟨{text}⟩\n```" for prompt, text in zip(prompts, said)]
    (folder / f"{step}.md").write_text("\n\n".join(parts) + "\n")
    job.recorder.event("sample", step=step, seconds=time.perf_counter() - began)


def written(reader: Reader, model: Transformer, prompts: tuple[str, ...], job: "Job") -> list[str]:
    beside = model.encoder is not None
    read = [reader.source(p) if reader.reads else reader.prompt(p) for p in prompts]
    eos = reader.tokenizer.eos
    out = generate(
        model,
        [reader.opening("")] * len(prompts) if beside else read,
        sources=read if beside else None,
        max_tokens=job.config.evals.sample_tokens,
        sampling=GREEDY,
        key=jax.random.key(0),
        stop_tokens=() if eos is None else (eos,),
        prefix=reader.prefix,
    )
    return [reader.tokenizer.decode(tokens) for tokens in out.tokens]


def filled(reader: Reader, model: Transformer, prompts: tuple[str, ...]) -> list[str]:
    """The most probable tokens for the masks of each prompt; nothing for one without a mask."""
    masked = [reader.masked(p) if reader.mask in p else None for p in prompts]
    there = [m for m in masked if m is not None]
    if not there or (model.head is None and model.generator is None):
        return [""] * len(prompts)
    rows = iter(fill(model, [ids for ids, _ in there], there[0][1], top_k=1))
    decode = reader.tokenizer.decode
    return ["" if m is None else " ".join(decode(mask.tokens) for mask in next(rows)) for m in masked]
