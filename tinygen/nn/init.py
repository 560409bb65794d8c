"""First values of parameters. Everything is float32 and drawn from the ``rng`` given."""

import numpy as np

from tinygen import check
from tinygen.nn.module import Parameter


def he(rng: np.random.Generator, shape, fan_in: float, gain: float) -> Parameter:
    """Normal with variance gain / fan_in. A gain of 2 keeps the variance through a layer with ReLU (He et al. 2015,
    equation 10), a gain of 1 through one without.

    ``fan_in``: how many inputs each output sums; of a masked convolution, only unmasked ones count.
    Raises ValueError for a layer without inputs or outputs, or a negative gain.
    """
    shape, fan_in = check.counts("a layer's sizes", shape), check.number("a layer's inputs", fan_in, "(0, inf)")
    deviation = np.sqrt(check.number("gain", gain, "[0, inf)") / fan_in)
    return Parameter(check.generator(rng).standard_normal(shape, np.float32) * np.float32(deviation))


def zeros(shape) -> Parameter:
    """All zero."""
    return Parameter(np.zeros(shape, np.float32))
