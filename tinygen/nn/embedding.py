"""A learned vector for each class or code."""

import numpy as np

from tinygen import check
from tinygen.nn import init
from tinygen.nn.module import Module


class Embedding(Module):
    """Looks up row i of ``weight`` (count, size) for each integer i: (...) -> (..., size).

    Initial weights are standard normal. Raises ValueError for indices that are not integers from 0 to count - 1; on a
    device their values are not checked.
    """

    def __init__(self, count: int, size: int, *, rng: np.random.Generator):
        count, size = check.count("count", count), check.count("size", size)
        self.weight = init.he(rng, (count, size), fan_in=1, gain=1.0)

    def forward(self, indices):
        return self.weight[check.labels("Embedding: indices", indices, self.weight.shape[0])]
