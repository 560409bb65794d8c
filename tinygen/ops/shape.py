"""Operations that move values without changing them. Derivatives move gradients back and sum those of copies."""

import functools
import operator

import numpy as np

from tinygen import check
from tinygen.backend import device_of, to_device, xp
from tinygen.tensor import Op, Tensor, as_array, as_tensor


class Reshape(Op):
    saves = ()

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        return x.reshape(self.shape)

    def backward(self, gy):
        return reshape(gy, self.inputs[0].shape)


class Transpose(Op):
    saves = ()

    def __init__(self, axes):
        self.axes = axes

    def forward(self, x):
        return x.transpose(self.axes)

    def backward(self, gy):
        inverse = sorted(range(len(self.axes)), key=lambda i: self.axes[i])
        return transpose(gy, inverse)


class Squeeze(Reshape):
    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        return x.squeeze(self.axis)


class ExpandDims(Reshape):
    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        return xp(x).expand_dims(x, self.axis)


class BroadcastTo(Op):
    saves = ()

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        return xp(x).broadcast_to(x, self.shape)

    def backward(self, gy):
        return sum_to(gy, self.inputs[0].shape)


class SumTo(Op):
    """The derivative of broadcasting: sums over the axes that broadcasting added or stretched."""

    saves = ()

    def __init__(self, shape):
        self.shape = shape

    def forward(self, x):
        added = x.ndim - len(self.shape)
        axes = tuple(i for i in range(x.ndim) if i < added or self.shape[i - added] != x.shape[i])
        return x.sum(axis=axes, keepdims=True).reshape(self.shape)

    def backward(self, gy):
        return broadcast_to(gy, self.inputs[0].shape)


class GetItem(Op):
    saves = ()

    def __init__(self, index):
        self.index = index

    def forward(self, x):
        return x[self.index]

    def backward(self, gy):
        return Scatter(self.index, self.inputs[0].shape)(gy)


class Scatter(Op):
    """The derivative of indexing: zeros of ``shape`` with x added at ``index`` (repeated indices add up)."""

    saves = ()

    def __init__(self, index, shape):
        self.index, self.shape = index, shape

    def forward(self, x):
        y = xp(x).zeros(self.shape, x.dtype)
        if all(hasattr(i, "start") or i is None or i is Ellipsis or isinstance(i, int) for i in _tuple(self.index)):
            y[self.index] = x  # slices and integers reach each element once
        else:
            xp(x).add.at(y, self.index, x)
        return y

    def backward(self, gy):
        return gy[self.index]


class Concatenate(Op):
    saves = ()

    def __init__(self, axis):
        self.axis = axis

    def forward(self, *xs):
        return xp(*xs).concatenate(xs, axis=self.axis)

    def backward(self, gy):
        ends = [0]
        for x in self.inputs:
            ends.append(ends[-1] + x.shape[self.axis])
        return tuple(_slice(gy, self.axis, start, stop) for start, stop in zip(ends, ends[1:]))


class Pad(Op):
    saves = ()

    def __init__(self, widths, value):
        self.widths, self.value = widths, value

    def forward(self, x):
        shape = [before + n + after for n, (before, after) in zip(x.shape, self.widths)]
        y = xp(x).full(shape, self.value, x.dtype)
        y[self._inside(x)] = x
        return y

    def backward(self, gy):
        return gy[self._inside(self.inputs[0])]

    def _inside(self, x):
        return tuple(slice(before, before + n) for n, (before, after) in zip(x.shape, self.widths))


class Flip(Op):
    saves = ()

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        return xp(x).flip(x, self.axis)

    def backward(self, gy):
        return flip(gy, self.axis)


class Skew(Op):
    """Row r moves right by r, so that a diagonal becomes a column: H x W -> H x (W + H - 1), zeros elsewhere."""

    saves = ()

    def __init__(self, row, column):
        self.row, self.column = row, column

    def forward(self, x):
        shape = list(x.shape)
        shape[self.column] += shape[self.row] - 1
        y = xp(x).zeros(shape, x.dtype)
        for out, row in _rows(y, x, self.row, self.column):
            out[...] = row
        return y

    def backward(self, gy):
        return Unskew(self.row, self.column)(gy)


class Unskew(Op):
    saves = ()

    def __init__(self, row, column):
        self.row, self.column = row, column

    def forward(self, y):
        shape = list(y.shape)
        shape[self.column] -= shape[self.row] - 1
        x = xp(y).empty(shape, y.dtype)
        for row, out in _rows(y, x, self.row, self.column):
            out[...] = row
        return x

    def backward(self, gx):
        return Skew(self.row, self.column)(gx)


class To(Op):
    saves = ()

    def __init__(self, device):
        self.device = device

    def forward(self, x):
        self.source = device_of(x)
        return to_device(x, self.device)

    def backward(self, gy):
        return to(gy, self.source)


def in_float32(operation):
    """Make ``operation`` compute float16 in float32, where sums may exceed 65,504 and small terms are not lost."""

    @functools.wraps(operation)
    def wide(x, *args, **kwargs):
        if getattr(x, "dtype", None) != np.float16:
            return operation(x, *args, **kwargs)
        return operation(x.astype(np.float32), *args, **kwargs).astype(np.float16)

    return wide


def _rows(skewed, straight, row, column):
    """Yield views of each row, in the skewed array and in the straight one."""
    skewed, straight = (xp(a).moveaxis(a, (row, column), (0, 1)) for a in (skewed, straight))
    for r in range(straight.shape[0]):
        yield skewed[r, r : r + straight.shape[1]], straight[r]


def _tuple(index):
    return index if isinstance(index, tuple) else (index,)


def _shape(shape):
    return tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)  # the operation raises if it is not a size


def _slice(x, axis, start, stop):
    return x[(slice(None),) * axis + (slice(start, stop),)]


def reshape(x, *shape) -> Tensor:
    """x with another shape, given as one tuple or as integers; one entry may be -1."""
    return Reshape(_shape(shape[0]) if len(shape) == 1 else shape)(x)


def transpose(x, *axes) -> Tensor:
    """x with its axes in another order, reversed if none is given."""
    axes = axes[0] if len(axes) == 1 and isinstance(axes[0], tuple | list) else axes
    return Transpose(tuple(check.axis("transpose", a, x.ndim) for a in axes or reversed(range(x.ndim))))(x)


def squeeze(x, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """x without its axes of size 1, or without those in ``axis``. Raises ValueError if one of these is longer."""
    return Squeeze(axis)(x)


def expand_dims(x, axis: int | tuple[int, ...]) -> Tensor:
    """x with new axes of size 1 at the positions ``axis`` of the result."""
    return ExpandDims(_shape(axis))(x)


def repeat(x, repeats: int, axis: int | None = None) -> Tensor:
    """x with each entry repeated ``repeats`` times along ``axis``; if ``axis`` is None, x is flattened first."""
    repeats = check.count("repeat: repeats", repeats, 0)
    x, axis = (reshape(x, -1), 0) if axis is None else (x, check.axis("repeat", axis, x.ndim))
    before, n, after = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    copies = broadcast_to(expand_dims(x, axis + 1), (*before, n, repeats, *after))
    return reshape(copies, (*before, n * repeats, *after))


def broadcast_to(x, shape) -> Tensor:
    """x broadcast to ``shape``, as in NumPy."""
    shape = _shape(shape)
    return x if x.shape == shape else BroadcastTo(shape)(x)


@in_float32
def sum_to(x, shape) -> Tensor:
    """x summed to ``shape``: the derivative of broadcast_to."""
    shape = _shape(shape)
    return x if x.shape == shape else SumTo(shape)(x)


def _list(index):
    """A list of indices as an array; an empty one gets an integer dtype."""
    array = as_array(index, "index")
    return array if array.size else array.astype(int)


def getitem(x, index) -> Tensor:
    """``x[index]``: slices, integers, None, ``...``, and boolean or integer arrays, which are moved to x's device."""
    index = (_list(i) if isinstance(i, list) else i for i in _tuple(index))
    index = (i.data if isinstance(i, Tensor) else i for i in index)
    index = tuple(to_device(i, x.device) if hasattr(i, "dtype") and i.ndim else i for i in index)
    return GetItem(index)(x)


def _tensors(op, xs):
    if not hasattr(xs, "__iter__") or isinstance(xs, dict | bytes) or not (xs := list(xs)):
        raise ValueError(f"{op}: got {xs!r}, needs at least one Tensor, in a list")
    return [as_tensor(x, f"{op}: an input") for x in xs]


def concatenate(xs, axis: int = 0) -> Tensor:
    """Join Tensors along ``axis``; their shapes must be equal in the other axes."""
    xs = _tensors("concatenate", xs)
    return Concatenate(check.axis("concatenate", axis, xs[0].ndim))(*xs)


def stack(xs, axis: int = 0) -> Tensor:
    """Join Tensors of equal shape along a new axis."""
    xs = _tensors("stack", xs)
    axis = check.axis("stack", axis, xs[0].ndim + 1)
    return concatenate([x.reshape(x.shape[:axis] + (1,) + x.shape[axis:]) for x in xs], axis)


def split(x, sections: int | list[int], axis: int = 0) -> list[Tensor]:
    """Split x like ``numpy.split``: into ``sections`` equal parts, or before each of the indices in a list."""
    axis = check.axis("split", axis, x.ndim)
    size = x.shape[axis]
    if isinstance(sections, list | tuple | range) or (isinstance(sections, np.ndarray) and sections.ndim):
        sections = [check.count("split: an index in sections", i, -size) for i in sections]
    elif size % check.count("split: sections", sections):
        raise ValueError(f"split: axis {axis} has {size} entries, which {sections} parts do not divide")
    else:
        sections = range(size // sections, size, size // sections)
    return [_slice(x, axis, start, stop) for start, stop in zip([0, *sections], [*sections, size])]


def pad(x, widths, value: float = 0) -> Tensor:
    """x padded with ``value``; ``widths``: one ``(before, after)`` for each axis."""
    try:
        pairs = [(operator.index(before), operator.index(after)) for before, after in widths]
    except (TypeError, ValueError):  # not pairs of integers: the error below shows them
        pairs = [(-1, -1)]
    if len(pairs) != x.ndim or any(min(pair) < 0 for pair in pairs):
        raise ValueError(f"pad: widths {widths!r} needs one (before, after), not negative, for each of {x.ndim} axes")
    return Pad(pairs, check.number("pad: value", value, "[-inf, inf]"))(x)


def flip(x, axis: int | tuple[int, ...]) -> Tensor:
    """x reversed along one axis or several."""
    return Flip(axis if axis is None else _shape(axis))(x)


def skew(x, row: int = -2, column: int = -1) -> Tensor:
    """Row r moved right by r: the diagonals of H x W become the columns of H x (W + H - 1); zeros elsewhere.

    ``row`` and ``column`` name the two axes. Source: van den Oord et al. 2016, section 3.2.
    """
    return Skew(check.axis("skew", row, x.ndim), check.axis("skew", column, x.ndim))(x)


def unskew(x, row: int = -2, column: int = -1) -> Tensor:
    """The inverse of ``skew``: it drops the entries that skewing filled with zeros."""
    row, column = check.axis("unskew", row, x.ndim), check.axis("unskew", column, x.ndim)
    if x.shape[column] < x.shape[row]:
        raise ValueError(f"unskew: {x.shape[row]} rows skewed need at least as many columns, x has {x.shape[column]}")
    return Unskew(row, column)(x)


def to(x, device: str) -> Tensor:
    """x on ``device``, ``"cpu"`` or ``"cuda"``; x itself if it is there already. Gradients return to x's device."""
    return x if x.device == device else To(device)(x)
