"""First values of parameters. Everything is float32 and drawn from the ``rng`` given."""

import numpy as np

from tinygen.nn.module import Parameter


def he(rng: np.random.Generator, shape, fan_in: int, scale: float) -> Parameter:
    """Normal with variance scale / fan_in: 2 keeps the variance through ReLU (He et al. 2015, eq. 10), 1 through none.

    ``fan_in``: how many inputs each output sums (of a masked convolution only the kept ones).
    Raises ValueError for a layer without inputs or outputs.
    """
    if fan_in < 1 or min(shape) < 1:
        raise ValueError(f"a layer needs at least one input and one output: its weights would be {tuple(shape)}")
    return Parameter(rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(scale / fan_in)))


def zeros(shape) -> Parameter:
    """All zero."""
    return Parameter(np.zeros(shape, np.float32))
