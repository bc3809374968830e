from dataclasses import dataclass
from typing import Literal

from pretrain.cli import arguments, output, runs
from pretrain.errors import UserError, check
from pretrain.models.generate.config import BeamSearch


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Loss, perplexity and bits per byte on the validation split; BLEU of a run of pairs.

    examples:
      pretrain evaluate smoke
      pretrain evaluate smoke --batches all                  the whole split
      pretrain evaluate smoke --step 40 --batches 4 --json
      pretrain evaluate translator --translations 500 --beams 4
    """

    run: arguments.Run
    step: int | None = None
    """Of the checkpoint. Default: the latest."""
    batches: int | Literal["all"] | None = None
    """How many of the split, from its beginning. Default: the run's evals.batches, as while it trained."""
    translations: int | None = None
    """Pairs of the split whose sources are translated for BLEU. Default: the run's evals.translations."""
    beams: int | None = None
    """Translate with so many beams. Default: greedily, as while it trained."""
    length_penalty: float = 1.0
    """Of beams, whose score is sum(logprobs) / tokens ** length_penalty."""
    json: arguments.Json = False

    def __call__(self) -> None:
        if isinstance(self.batches, int) and self.batches < 1:
            raise UserError(f"batches={self.batches}: expected 1 or more, or all; leave it out for the run's own")
        if self.translations is not None and self.translations < 0:
            raise UserError(
                f"translations={self.translations}: expected 0 or more pairs; leave it out for the run's own"
            )
        search = None if self.beams is None else BeamSearch(beams=self.beams, length_penalty=self.length_penalty)
        if search is not None:
            check(search, "search")
        run = runs.find(self.run)
        from pretrain.evaluate.perplexity import evaluate
        from pretrain.opened import open_run

        opened = open_run(run, step=self.step)
        measured = evaluate(opened, batches=self.batches, translations=self.translations, search=search)
        output.show({"step": opened.step, **measured}, self.json)


COMMAND = Evaluate
