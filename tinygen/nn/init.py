"""Initial values of parameters. All are float32 and drawn from the given ``rng``."""

import numpy as np

from tinygen import check
from tinygen.nn.module import Parameter


def he(rng: np.random.Generator, shape, fan_in: float, gain: float) -> Parameter:
    """Draws from N(0, gain / fan_in). A gain of 2 keeps the variance of the activations through a layer with ReLU (He
    et al. 2015), a gain of 1 through a layer without.

    ``fan_in``: the number of inputs that each output sums; masked weights do not count.
    Raises ValueError for a layer without inputs or outputs, or a negative gain.
    """
    shape, fan_in = check.counts("a layer's sizes", shape), check.number("a layer's inputs", fan_in, "(0, inf)")
    deviation = np.sqrt(check.number("gain", gain, "[0, inf)") / fan_in)
    return Parameter(check.generator(rng).standard_normal(shape, np.float32) * np.float32(deviation))


def zeros(shape) -> Parameter:
    """A Parameter of zeros."""
    return Parameter(np.zeros(shape, np.float32))
