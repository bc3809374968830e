"""What the model says at this step, in samples/STEP.md."""

from typing import TYPE_CHECKING

import jax

from pretrain.models.generate.decode import generate
from pretrain.models.generate.sample import Sampling
from pretrain.models.transformer import Transformer

if TYPE_CHECKING:
    from pretrain.job import Job


def write_samples(job: "Job", model: Transformer, step: int) -> None:
    """Greedy continuations of the prompts of the config. Skipped on more than one device."""
    prompts = job.config.evals.prompts
    if not prompts or jax.device_count() > 1:
        return
    tokenizer = job.tokenizer
    ids = [tokenizer.encode(p) for p in prompts]
    stop = () if tokenizer.eos is None else (tokenizer.eos,)
    out = generate(
        model,
        ids,
        max_tokens=job.config.evals.sample_tokens,
        sampling=Sampling(temperature=0.0),
        key=jax.random.key(0),
        stop_tokens=stop,
    )
    folder = job.run / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# step {step}"]
    for prompt, tokens in zip(prompts, out.tokens):
        parts.append(f"```text\n{prompt}⟨{tokenizer.decode(tokens)}⟩\n```")
    (folder / f"{step}.md").write_text("\n\n".join(parts) + "\n")
    job.recorder.event("sample", step=step)
