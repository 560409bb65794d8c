"""Fully connected layer and dropout."""

import numpy as np

from tinygen import ops
from tinygen.nn import init
from tinygen.nn.module import Module


class Linear(Module):
    """``x @ weight.T + bias``: (..., in_features) -> (..., out_features); weight (out, in) as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, *, rng: np.random.Generator, gain: float = 1.0):
        self.weight = init.he(rng, (out_features, in_features), in_features, gain)
        self.bias = init.zeros(out_features)

    def forward(self, x):
        if x.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"Linear: x {x.shape} has {x.shape[-1]} features, needs {self.weight.shape[1]}")
        return x @ self.weight.T + self.bias


class Dropout(Module):
    """Zeroes each value with probability ``p`` where an ``rng`` is given; without one (evaluation) does nothing."""

    def __init__(self, p: float):
        self.p = p

    def forward(self, x, rng: np.random.Generator | None = None):
        return x if rng is None else ops.dropout(x, self.p, rng)

    def describe(self):
        return f"p={self.p}"
