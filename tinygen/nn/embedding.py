"""A learned vector for each of a number of things, such as classes or codes."""

import numpy as np

from tinygen.nn import init
from tinygen.nn.module import Module
from tinygen.ops.shape import integers
from tinygen.tensor import Tensor


class Embedding(Module):
    """Row i of ``weight`` (count, size) for each integer i: (...) -> (..., size). At first standard normal.

    Raises ValueError for what is not an integer from 0 to count - 1 (on a device a range is not waited for).
    """

    def __init__(self, count: int, size: int, *, rng: np.random.Generator):
        self.weight = init.he(rng, (count, size), fan_in=1, scale=1.0)

    def forward(self, indices):
        indices = indices.data if isinstance(indices, Tensor) else indices
        indices = integers(indices) if isinstance(indices, int | list | tuple) else indices
        if indices.dtype.kind not in "iu":
            raise ValueError(f"Embedding: indices have dtype {indices.dtype}, need integers")
        if isinstance(indices, np.ndarray | np.generic) and indices.size:
            low, high, last = indices.min(), indices.max(), self.weight.shape[0] - 1
            if low < 0 or high > last:
                raise ValueError(f"Embedding: indices {low}..{high}, need 0..{last}")
        return self.weight[indices]
