"""How the models of the table in benchmarks/RESULTS.md are trained: each model's file ends with its recipes."""

from dataclasses import dataclass, field

from tinygen.optim import Muon


@dataclass(frozen=True)
class Recipe:
    """The model that ``benchmarks/likelihood.py NAME`` builds, and how it is trained."""

    model: type
    settings: dict  # the constructor's arguments
    protocol: str  # the data, one of those that benchmarks/RESULTS.md describes, such as "static" or "8-bit"
    steps: tuple[int, ...]  # of each part of the schedule; in each the learning rate falls to zero
    optimizer: type | None = Muon  # None: the model's ``maximize`` is called with the steps
    lr: float = 5e-3
    weight_decay: float = 0.1
    options: dict = field(default_factory=dict)  # further arguments of the optimizer
    averaging: float = 0.999  # decay of the moving average of the weights
    batch_size: int = 32
    published: str = "-"  # the paper's result
    start: str = ""  # the row whose trained weights it starts from
