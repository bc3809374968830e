from dataclasses import dataclass

from pretrain.cli import arguments, output


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A tour on real text without a download: trains a tokenizer and a small Llama on the Python standard library,
    checkpoints, resumes, samples, exports, writes report.html. About three minutes on two cores.

    examples:
      pretrain demo
      pretrain demo --fresh --run /tmp/demo
    """

    run: str = "runs/demo"
    """The run directory; an unfinished one is continued."""
    fresh: bool = False
    """Delete it first."""
    json: arguments.Json = False

    def __call__(self) -> None:
        from etils import epath

        from pretrain.demo import demo

        output.show(demo(epath.Path(self.run), self.fresh), self.json)


COMMAND = Demo
