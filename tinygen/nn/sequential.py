"""A chain of layers."""

import numpy as np

from tinygen import check
from tinygen.nn.module import Dropout, Module
from tinygen.nn.norm import BatchNorm


class Sequential(Module):
    """Calls modules, or functions of one Tensor such as ``ops.relu``, in turn. Raises TypeError for other arguments."""

    def __init__(self, *steps):
        if not all(map(callable, steps)):
            raise TypeError(f"Sequential: got {steps!r}, needs modules or functions, as in Sequential(a, b)")
        self.steps = steps

    def forward(self, x, rng: np.random.Generator | None = None):
        """``rng`` is given in training: Dropout draws from it, BatchNorm normalizes by the batch. Without it (in
        evaluation) Dropout does nothing and BatchNorm uses its running averages.
        """
        check.generator(rng, or_none=True)
        for step in self.steps:
            if isinstance(step, Dropout | Sequential):
                x = step(x, rng)
            else:
                x = step(x, training=rng is not None) if isinstance(step, BatchNorm) else step(x)
        return x
