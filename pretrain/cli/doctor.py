from dataclasses import asdict, dataclass

from tyro.conf import Positional

from pretrain.cli import CHECK, DONE, arguments, output, runs


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look for what is wrong with this machine or, given one, with a run. Exit code 3 when something is.

    examples:
      pretrain doctor
      pretrain doctor smoke --json                             reads every byte of the run's checkpoints
    """

    run: Positional[str | None] = None
    """A run directory, or its name under runs/. Default: the machine alone."""
    json: arguments.Json = False

    def __call__(self) -> int:
        run = None if self.run is None else runs.find(self.run)
        from pretrain import doctor

        findings = doctor.environment() if run is None else doctor.examine(run)
        ok = not any(f.severity == "error" for f in findings)
        facts = {"ok": ok, "findings": [asdict(f) for f in findings]}
        lines = [f"{f.severity}: {f.where}: {f.what}" + (f"; {f.do}" if f.do else "") for f in findings]
        output.show(facts, self.json, lines or ["nothing wrong found"])
        return DONE if ok else CHECK


COMMAND = Doctor
