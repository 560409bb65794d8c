"""Fully connected layer."""

import numpy as np

from tinygen import check
from tinygen.nn import init
from tinygen.nn.module import Module


class Linear(Module):
    """``x @ weight.T + bias``: (..., in_features) -> (..., out_features); weight (out, in) as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, *, rng: np.random.Generator, gain: float = 1.0):
        in_features, out_features = check.count("in_features", in_features), check.count("out_features", out_features)
        self.weight = init.he(rng, (out_features, in_features), in_features, gain)
        self.bias = init.zeros(out_features)

    def forward(self, x):
        return check.tensor("Linear: x", x, ..., self.weight.shape[1]) @ self.weight.T + self.bias
