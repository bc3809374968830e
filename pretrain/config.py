"""A run as a value. Everything that decides its numbers is here; nothing here imports jax."""

from dataclasses import dataclass, field, replace
from typing import Literal

from pretrain.data.config import DataConfig, TrainSentencePiece
from pretrain.errors import UserError, check
from pretrain.health.config import HealthConfig
from pretrain.mesh_checks import mesh_problems
from pretrain.models.config import LearnedPositions, TransformerConfig
from pretrain.objectives.config import NextToken, Objective, PrefixLm, SequencePairs
from pretrain.optimizer.config import OptimizerConfig
from pretrain.sharding.mesh import MeshConfig
from pretrain.sharding.rules import AxisRules

Checks = tuple[tuple[bool, str], ...]


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    rows: int
    """Of the global batch, whatever the mesh."""
    accumulate: int = 1
    """Micro-batches whose gradients are summed before one update."""

    def checks(self) -> Checks:
        return (
            (self.rows > 0, f"rows={self.rows}: expected a positive number of rows"),
            (
                self.accumulate > 0 and self.rows % max(self.accumulate, 1) == 0,
                f"accumulate={self.accumulate} does not divide rows={self.rows}; choose a divisor",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every: int = 1000
    """Steps between checkpoints; the last step is saved too."""
    keep_latest: int = 2
    every_minutes: float | None = None
    """Minutes after which one is saved even before `every` steps; None: steps alone decide."""
    keep_best: int = 1
    """By validation loss, beside the latest."""
    keep_every: int | None = None
    """Steps that are multiples of it stay for ever; None: none does."""
    local: str | None = None
    """Folder on each machine's own disk or in its memory (/dev/shm/runs) for copies between checkpoints; None: none."""
    local_every: int = 100
    """Steps between such copies. The newest two stay; what they hold is used after a restart on the same layout."""
    on_failure: Literal["continue", "stop"] = "continue"
    """When a save fails (no room, no permission): train on and try again at the next one, or stop."""

    def checks(self) -> Checks:
        return (
            (self.every > 0, f"every={self.every}: expected a positive number of steps"),
            (self.local_every > 0, f"local_every={self.local_every}: expected a positive number of steps"),
            (self.keep_latest > 0, f"keep_latest={self.keep_latest}: expected at least 1, or nothing could be resumed"),
            (self.keep_best >= 0, f"keep_best={self.keep_best}: expected 0 or more"),
            (
                self.every_minutes is None or self.every_minutes > 0,
                f"every_minutes={self.every_minutes}: expected a positive number of minutes, or None",
            ),
            (
                self.keep_every is None or self.keep_every > 0,
                f"keep_every={self.keep_every}: expected a positive number of steps, or None",
            ),
        )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    every: int = 1000
    """Steps between looks at the validation split; the last step is looked at too."""
    batches: int = 16
    """Of the validation split, each time the same."""
    prompts: tuple[str, ...] = ()
    """Continued at every evaluation, greedily, into samples/STEP.md."""
    sample_tokens: int = 64
    translations: int = 0
    """Pairs of the validation split whose sources are translated at every evaluation, greedily, for BLEU."""

    def checks(self) -> Checks:
        return (
            (self.every > 0, f"every={self.every}: expected a positive number of steps"),
            (self.batches > 0, f"batches={self.batches}: expected a positive number of batches"),
            (self.sample_tokens > 0, f"sample_tokens={self.sample_tokens}: expected a positive number of tokens"),
            (self.translations >= 0, f"translations={self.translations}: expected 0 or more pairs"),
        )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    every: int = 10
    """Steps between lines of metrics.jsonl and of the terminal."""
    tensorboard: bool = True

    def checks(self) -> Checks:
        return ((self.every > 0, f"every={self.every}: expected a positive number of steps"),)


Layout = Literal["dp", "fsdp", "fsdp_tp"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    model: TransformerConfig
    data: DataConfig
    optimizer: OptimizerConfig
    steps: int
    batch: BatchConfig
    objective: Objective = field(default_factory=NextToken)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    rules: Layout | AxisRules = "fsdp"
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations; auto: bfloat16 on TPU and GPU, float32 on CPU. Parameters are float32."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evals: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    start_from: str | None = None
    """A run or a Hugging Face folder whose parameters the run starts with; None: random ones."""
    start_layers: tuple[int, ...] | None = None
    """For each repeat of the pattern, the repeat of `start_from` that it copies, -1 a random one; None: the same."""
    simulate: int | None = None
    """Run on so many simulated CPU devices; None: on the real ones."""
    seed: int = 0

    def checks(self) -> Checks:
        length = self.data.sequence_length
        vocab = getattr(self.data.corpus.tokenizer, "vocab_size", None)
        return (
            (self.steps > 0, f"steps={self.steps}: expected a positive number"),
            (self.seed >= 0, f"seed={self.seed}: expected 0 or more"),
            (
                self.simulate is None or self.simulate > 0,
                f"simulate={self.simulate}: expected devices, or None",
            ),
            *_start_checks(self),
            *_room_checks(self.model, length, self.objective.lengths(length, self.model)),
            (
                vocab is None or vocab <= self.model.vocab_size,
                f"data.corpus.tokenizer.vocab_size={vocab} does not fit model.vocab_size={self.model.vocab_size}; "
                "make the model's at least as large",
            ),
            (
                not self.evals.translations or isinstance(self.objective, SequencePairs),
                f"evals.translations={self.evals.translations}: found {type(self.objective).__name__}, only "
                "SequencePairs translates; set it to 0",
            ),
            (
                not self.data.lengths or isinstance(self.objective, NextToken | PrefixLm),
                f"data.lengths: {type(self.objective).__name__} has its own lengths; leave them out",
            ),
            (
                self.data.packing == "split" or isinstance(self.objective, NextToken | PrefixLm),
                f"data.packing={self.data.packing}: {type(self.objective).__name__} has its own rows; set it to split",
            ),
            *((holds, f"objective: {message}") for holds, message in self.objective.run_checks(self.model, self.data)),
            *((holds, f"optimizer.{message}") for holds, message in self.optimizer.step_checks(self.steps)),
        )

    def prepared(self) -> DataConfig:
        """`data`; a tokenizer that is trained on its corpus also gets the special tokens of the objective."""
        corpus = self.data.corpus
        if not isinstance(corpus.tokenizer, TrainSentencePiece):
            return self.data
        names = self.objective.tokens(self.data.sequence_length, self.model)
        tokenizer = corpus.tokenizer.with_tokens(names)
        return replace(self.data, corpus=replace(corpus, tokenizer=tokenizer))

    def check(self, devices: int | None = None) -> None:
        """Raises one UserError with every problem; those of the mesh too once the number of devices is known."""
        check(self)
        if devices is not None:
            found = mesh_problems(self, devices)
            if found:
                raise UserError(*found)


def _start_checks(config: RunConfig) -> Checks:
    layers = config.start_layers
    if layers is None:
        return ()
    stacks = {"model.encoder": config.model.encoder, "model.decoder": config.model.decoder}
    known = config.start_from is not None
    return (
        (known, f"start_layers={layers}: found no start_from, expected the run whose layers are copied; set it"),
        *(
            (
                len(layers) == stack.repeats,
                f"start_layers={layers}: found {len(layers)} layers, expected {name}.repeats={stack.repeats}; "
                "name one for each",
            )
            for name, stack in stacks.items()
            if stack
        ),
    )


def _room_checks(model: TransformerConfig, sequence: int, lengths: tuple[int, int | None]) -> Checks:
    """Tables of positions hold every token of a row."""
    stacks = {"decoder": (model.decoder, lengths[0]), "encoder": (model.encoder, lengths[1 if model.decoder else 0])}
    out = []
    for name, (stack, length) in stacks.items():
        table = stack and stack.positions
        if isinstance(table, LearnedPositions) and length is not None:
            what = "is longer than" if length == sequence else f"makes rows of {length} tokens, more than"
            message = f"data.sequence_length={sequence} {what} the table of {table.length} positions; "
            out.append((length <= table.length, f"{message}shorten it or lengthen model.{name}.positions"))
    return tuple(out)
