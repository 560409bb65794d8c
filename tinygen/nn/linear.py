"""Fully connected layer."""

import numpy as np

from tinygen.nn import init
from tinygen.nn.module import Module


class Linear(Module):
    """``x @ weight.T + bias``: (..., in_features) -> (..., out_features); weight (out, in) as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, *, rng: np.random.Generator, scale: float = 1.0):
        self.weight = init.he(rng, (out_features, in_features), in_features, scale)
        self.bias = init.zeros(out_features)

    def forward(self, x):
        if x.shape[-1] != self.weight.shape[1]:
            raise ValueError(f"Linear: x {x.shape} has {x.shape[-1]} features, needs {self.weight.shape[1]}")
        return x @ self.weight.T + self.bias
