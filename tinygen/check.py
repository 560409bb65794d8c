"""Checks of arguments, one function for each kind. Each returns the argument in the form that the code works with, or
raises ValueError (TypeError for an array without real numbers) that says what it got and what it needs.

Values of arrays are checked on the host only: on a device, a check would make every step wait for the device.
"""

import operator

import numpy as np

from tinygen.backend import to_device, xp
from tinygen.tensor import Tensor, as_array, as_tensor


def count(name: str, value, smallest: int = 1, odd: bool = False, most: float = np.inf) -> int:
    """``value`` as a Python int from ``smallest`` to ``most``; a NumPy integer could overflow later."""
    try:
        n = operator.index(value)
    except TypeError:
        n = smallest - 1
    if not smallest <= n <= most or isinstance(value, bool | np.bool_) or (odd and n % 2 == 0):
        limits = f"of at least {smallest}" if most == np.inf else f"from {smallest} to {most}"
        raise ValueError(f"{name}: got {value!r}, needs {'an odd' if odd else 'a whole'} number {limits}")
    return n


def counts(
    name: str, values, needs: str = "whole numbers", size: int | None = None, smallest: int = 1, odd: bool = False
) -> tuple[int, ...]:
    """``values`` as a tuple of numbers that ``count`` accepts: ``size`` of them, or at least one."""
    several = values if isinstance(values, tuple | list | np.ndarray) else ()
    try:
        numbers = tuple([count(name, v, smallest, odd) for v in several])
    except (TypeError, ValueError):  # one of them is wrong: the error below shows all
        numbers = ()
    if not numbers or len(numbers) != (size or len(numbers)):
        raise ValueError(f"{name}: got {values!r}, needs {needs}, each {'odd and ' if odd else ''}at least {smallest}")
    return numbers


def pair(name: str, value, smallest: int = 1, odd: bool = False) -> tuple[int, int]:
    """``value``, a whole number or two, as (vertical, horizontal)."""
    several = isinstance(value, tuple | list) or (isinstance(value, np.ndarray) and value.ndim)
    return counts(
        name, value if several else (value, value), "a whole number or (vertical, horizontal)", 2, smallest, odd
    )


def number(name: str, value, interval: str) -> float:
    """``value`` as a Python float in ``interval``, which is written like "[0, 1)" or "(0, inf)"."""
    low, high = map(float, interval[1:-1].split(","))
    try:
        x = float(value) if np.ndim(value) == 0 and not isinstance(value, str | bytes | bool | np.bool_) else np.nan
    except (TypeError, ValueError, OverflowError):
        x = np.nan
    if not ((low < x or (low == x and interval[0] == "[")) and (x < high or (x == high and interval[-1] == "]"))):
        raise ValueError(f"{name}: got {value!r}, needs a number in {interval}")
    return x


def choice(name: str, value, *options: str) -> str:
    """``value`` itself, if it is one of the ``options``."""
    if not isinstance(value, str) or value not in options:
        needs = " or ".join([", ".join(map(repr, options[:-1])), repr(options[-1])])
        raise ValueError(f"{name}: got {value!r}, needs {needs}")
    return value


def generator(rng, or_none: bool = False) -> np.random.Generator | None:
    """``rng`` itself, if it is a NumPy Generator (or None, where ``or_none`` allows it)."""
    if not (or_none and rng is None) and not isinstance(rng, np.random.Generator):
        raise ValueError(f"rng: got {rng!r}, needs a generator such as np.random.default_rng(0)")
    return rng


def room(rng, numbers: int) -> None:
    """Raise if ``rng`` is limited to fewer draws than a model is about to allocate: a file's settings do not fit it."""
    if numbers > getattr(rng, "left", numbers):
        raise ValueError("its settings are of a larger model than its arrays")


def axis(name: str, value, ndim: int) -> int:
    """``value``, one of ``ndim`` axes, as an index from 0 to ndim - 1."""
    try:
        i = operator.index(value)
    except TypeError:
        i = ndim
    if not -ndim <= i < ndim:
        raise ValueError(f"{name}: axis {value!r}, but there are {ndim} axes")
    return i % ndim


def tensor(name: str, x, *shape) -> Tensor:
    """``x`` as a Tensor of ``shape``: a size for each axis, or a name where any size fits; ``...`` for further axes."""
    x = as_tensor(x, name)
    front, back = (shape[:1] == (...,)), shape[-1:] == (...,)
    wanted = shape[front : len(shape) - back]
    found = x.shape[x.ndim - len(wanted) :] if front else x.shape[: len(wanted)] if back else x.shape
    if len(found) != len(wanted) or any([n != size for n, size in zip(found, wanted) if not isinstance(size, str)]):
        needs = ", ".join("..." if size is ... else str(size) for size in shape)
        raise ValueError(f"{name} has shape {x.shape}, needs ({needs}{',' * (len(shape) == 1)})")
    return x


def whole(name: str, x, levels: int) -> None:
    """Raise ValueError unless the array ``x`` has whole numbers 0 .. levels - 1, in any dtype."""
    if isinstance(x, np.ndarray | np.generic) and x.size:
        low, high = x.min(), x.max()
        if not (low >= 0 and high < levels) or (x.dtype.kind == "f" and (x != np.floor(x)).any()):
            hint = "; tinygen.data has functions that binarize" if levels == 2 else ""
            if 2 < levels <= high < 256:
                hint = f"; images // {-(-256 // levels)} makes such of grey values 0 .. 255"
            found = f"values from {low} to {high}" if np.isfinite(low + high * 1.0) else "some values are not finite"
            raise ValueError(f"{name}: {found}, needs whole numbers 0 .. {levels - 1}{hint}")


def no_nan(name: str, x) -> None:
    """Raise ValueError if an entry of the array ``x`` is nan: all draws from it would be zero."""
    if isinstance(x, np.ndarray | np.generic) and x.size and np.isnan(x.min()):
        raise ValueError(f"{name}: some are nan, so nothing can be drawn")


def mask(value, shape: tuple[int, ...], device: str):
    """``value``, booleans that broadcast to ``shape``, as an array of this shape on the device."""
    x = to_device(as_array(value, "mask"), device)
    if x.dtype != bool:
        raise ValueError(f"mask: has dtype {x.dtype}, needs booleans")
    try:
        return xp(x).broadcast_to(x, shape)
    except ValueError:
        raise ValueError(f"mask: has shape {x.shape}, needs to broadcast to {shape}") from None


def labels(name: str, values, classes: int, shape: tuple[int, ...] | None = None):
    """``values`` as an array of whole numbers 0 .. classes - 1, of ``shape`` if it is given."""
    x = as_array(() if values is None else values, name)
    x = x.astype(int) if not x.size and isinstance(values, list | tuple) else x
    fits, low, high = x.dtype.kind in "iu" and shape in (None, x.shape), 0, -1
    if fits and x.size and isinstance(x, np.ndarray | np.generic):
        low, high = x.min(), x.max()
    if not fits or low < 0 or high >= classes:
        found = f"{low} to {high}" if fits else "none" if values is None else f"shape {x.shape}, dtype {x.dtype}"
        needs = f"whole numbers 0 .. {classes - 1}" + ("" if shape is None else f", of shape {shape}")
        raise ValueError(f"{name}: got {found}, needs {needs}")
    return x


def classes(values, classes: int, n: int):
    """``values`` as labels (n,) for a layer or model with ``classes``; None if ``classes`` is 0."""
    if not classes:
        return no_labels(values)
    return labels("labels", values, classes, (n,))


def no_labels(values) -> None:
    """Raise unless ``values``, the labels for a model without classes, are None."""
    if values is not None:
        raise ValueError("labels: the model was built without classes")
