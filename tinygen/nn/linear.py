"""Fully connected layers: plain, and masked."""

import numpy as np

from tinygen import check
from tinygen.backend import to_device
from tinygen.nn import init
from tinygen.nn.module import Module
from tinygen.tensor import Tensor, as_array


class Linear(Module):
    """``x @ weight.T + bias``: (..., in_features) -> (..., out_features); weight (out, in) as in PyTorch."""

    def __init__(self, in_features: int, out_features: int, *, rng: np.random.Generator, gain: float = 1.0):
        in_features, out_features = check.count("in_features", in_features), check.count("out_features", out_features)
        self.weight = init.he(rng, (out_features, in_features), in_features, gain)
        self.bias = init.zeros(out_features)

    def forward(self, x):
        return check.tensor("Linear: x", x, ..., self.weight.shape[1]) @ self.weight.T + self.bias


class MaskedLinear(Module):
    """``x @ (weight * mask).T + bias``: (..., in_features) -> (..., out_features).

    ``mask`` (out, in), booleans: which inputs each output sees. Only these count in the fan-in of the initial weights.
    Raises ValueError for a mask of another shape or dtype. Source: Germain et al. 2015, section 4.1.
    """

    def __init__(self, mask, *, rng: np.random.Generator, gain: float = 1.0):
        mask = as_array(mask, "MaskedLinear: mask")
        if mask.ndim != 2 or mask.dtype != bool or not mask.size:
            raise ValueError(f"MaskedLinear: mask is {mask.shape} {mask.dtype}, needs (out, in) booleans")
        self.mask = mask.astype(np.float32)
        self.weight = init.he(rng, mask.shape, 1, gain)
        self.weight.data *= self.mask / np.sqrt(np.maximum(self.mask.sum(1, keepdims=True), 1))
        self.bias = init.zeros(len(mask))

    def to(self, device):
        self.mask = to_device(self.mask, device)
        return super().to(device)

    def masked_weight(self) -> Tensor:
        """The weights (out, in), zero where they are masked."""
        return self.weight * Tensor(self.mask.astype(self.weight.dtype, copy=False))

    def forward(self, x):
        return check.tensor("MaskedLinear: x", x, ..., self.weight.shape[1]) @ self.masked_weight().T + self.bias
