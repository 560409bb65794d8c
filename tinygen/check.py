"""What arguments must be, one function for each kind. Each raises ValueError with a sentence that names the argument,
what it got and what it needs."""

import operator

import numpy as np


def count(name: str, value, smallest: int = 1, odd: bool = False) -> int:
    """``value`` as a Python int: a whole number of at least ``smallest``. NumPy's own would overflow in later sums."""
    try:
        n = operator.index(value)
    except TypeError:
        n = smallest - 1
    if n < smallest or isinstance(value, bool | np.bool_) or (odd and n % 2 == 0):
        raise ValueError(f"{name}: got {value!r}, needs {'an odd' if odd else 'a whole'} number of at least {smallest}")
    return n


def number(name: str, value, interval: str) -> float:
    """``value`` as a Python float: a number in ``interval``, written as in "[0, 1)"; "inf" is a limit too."""
    low, high = map(float, interval[1:-1].split(","))
    try:
        x = float(value) if np.ndim(value) == 0 and not isinstance(value, str | bytes | bool | np.bool_) else np.nan
    except (TypeError, ValueError, OverflowError):
        x = np.nan
    if not ((low < x or (low == x and interval[0] == "[")) and (x < high or (x == high and interval[-1] == "]"))):
        raise ValueError(f"{name}: got {value!r}, needs a number in {interval}")
    return x


def generator(rng) -> np.random.Generator:
    """``rng`` itself, where random numbers can be drawn from it."""
    if not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: got {rng!r}, needs a generator such as np.random.default_rng(0)")
    return rng
