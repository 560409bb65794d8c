"""How a model's row of the table is trained: each model's file ends with its recipes."""

from dataclasses import dataclass

from tinygen.optim import Muon


@dataclass(frozen=True)
class Recipe:
    """What ``benchmarks/likelihood.py NAME`` builds, and how it is trained."""

    model: type
    settings: dict  # the constructor's arguments
    protocol: str  # the data: "published", "static", "dynamic", "grey" or "8-bit", see benchmarks/RESULTS.md
    steps: tuple[int, ...]  # of each part of the schedule; the learning rate falls to zero in each
    optimizer: type | None = Muon  # with weight_decay; None: the model has ``maximize``, and steps are its rounds
    lr: float = 5e-3
    weight_decay: float = 0.1
    averaging: float = 0.999  # the share of the running average of the weights that is kept at each step
    batch_size: int = 32
    published: str = "-"  # the figure of the paper
    start: str = ""  # the row whose weights it begins with
