from dataclasses import dataclass

from pretrain import presets
from pretrain.cli import arguments, output
from pretrain.errors import CheckFailed, UserError


@dataclass(frozen=True, kw_only=True)
class Certify:
    """Does every layout compute the same? A small model with the run's mechanisms, on eight simulated devices.

    examples:
      pretrain certify runs.smoke                                   every mesh that the model allows
      pretrain certify runs.smoke_mixtral --mesh expert=4,fsdp=2 --mesh context=2,stage=2,expert=2
    """

    config: arguments.Config
    mesh: tuple[str, ...] = ()
    """Only these, as AXIS=N,AXIS=N; attention=ring, micro=N and rounds=N too."""
    json: arguments.Json = False
    overrides: arguments.Overrides = ()

    def __call__(self) -> None:
        config = presets.overrides(presets.load_run(self.config), self.overrides, ("mesh",))
        chosen = [_mesh(words) for words in self.mesh] or None
        from pretrain.certify.certify import TOLERANCE, certify, simulate

        simulate()

        def tell(row: dict) -> None:
            if not self.json:
                print(_line(row), flush=True)

        if not self.json:
            print(f"{'mesh':<44}{'loss':>10}{'gradient':>10}  worst")
        rows = certify(config, chosen, tell)
        wrong = [row for row in rows if not row["equal"]]
        facts = {"config": self.config, "tolerance": TOLERANCE, "equal": not wrong, "meshes": rows}
        output.show(facts, self.json, [f"{len(rows) - len(wrong)} of {len(rows)} meshes give the step of one device"])
        if wrong:
            raise CheckFailed(
                *(
                    f"{_name(row)}: gradient of {row['where']} is off by {row['gradient']:.1e}, loss by "
                    f"{row['loss']:.1e}, expected {TOLERANCE:.0e}; do not train on this mesh"
                    for row in wrong
                )
            )


def _name(row: dict) -> str:
    ring = ["attention=ring"] if row["attention"] == "ring" else []
    return " ".join([*(f"{axis}={n}" for axis, n in row["mesh"].items()), *ring])


def _line(row: dict) -> str:
    mark = "" if row["equal"] else "  DIFFERS"
    return f"{_name(row):<44}{row['loss']:>10.1e}{row['gradient']:>10.1e}  {row['where']}{mark}"


def _mesh(words: str):
    from pretrain.errors import problems
    from pretrain.sharding.mesh import MeshConfig

    sizes: dict = {"fsdp": 1}
    for word in words.split(","):
        name, _, value = word.partition("=")
        known = name == "attention" or value.lstrip("-").isdigit()
        if name not in MeshConfig.__dataclass_fields__ or not known:
            raise UserError(f"mesh={words}: found {word!r}, expected AXIS=N; write for example fsdp=4,tensor=2")
        sizes[name] = value if name == "attention" else int(value)
    mesh = MeshConfig(**sizes)
    if found := list(problems(mesh, "mesh")):
        raise UserError(*found)
    return mesh


COMMAND = Certify
