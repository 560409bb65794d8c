"""First values of parameters. Everything is float32 and drawn from the ``rng`` given."""

import numpy as np

from tinygen import check
from tinygen.nn.module import Parameter


def he(rng: np.random.Generator, shape, fan_in: float, scale: float) -> Parameter:
    """Normal with variance scale / fan_in: 2 keeps the variance through ReLU (He et al. 2015, eq. 10), 1 through none.

    ``fan_in``: how many inputs each output sums (of a masked convolution only the kept ones).
    Raises ValueError for a layer without inputs or outputs, or a negative scale.
    """
    shape, fan_in = check.counts("a layer's sizes", shape), check.number("a layer's inputs", fan_in, "(0, inf)")
    deviation = np.sqrt(check.number("scale", scale, "[0, inf)") / fan_in)
    return Parameter(check.generator(rng).standard_normal(shape, np.float32) * np.float32(deviation))


def zeros(shape) -> Parameter:
    """All zero."""
    return Parameter(np.zeros(shape, np.float32))
