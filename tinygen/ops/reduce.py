"""Reductions. ``axis`` (None for all, an integer or a tuple) and ``keepdims`` are as in NumPy.

Sums and products of float16 are computed in float32.
"""

import math

from tinygen import check
from tinygen.backend import xp
from tinygen.ops.elementwise import sqrt, where
from tinygen.ops.shape import broadcast_to, concatenate, flip, in_float32, pad, reshape, transpose
from tinygen.tensor import Op, Tensor


class Reduction(Op):
    def __init__(self, axis, keepdims):
        self.axis, self.keepdims = tuple(axis) if isinstance(axis, list) else axis, keepdims

    def spread(self, t):
        """Broadcast t from the shape of the result to that of the input."""
        shape = self.inputs[0].shape
        axes = [a % (len(shape) or 1) for a in _axes(self.axis, len(shape))]
        kept = [1 if i in axes else n for i, n in enumerate(shape)]
        return broadcast_to(reshape(t, kept), shape)


class Sum(Reduction):
    saves = ()

    def forward(self, x):
        return x.sum(axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy):
        return self.spread(gy)


class Max(Reduction):
    def forward(self, x):
        return x.max(axis=self.axis, keepdims=self.keepdims)

    def backward(self, gy):
        chosen = self.inputs[0].data == self.spread(self.output.detach()).data
        count = chosen.sum(axis=self.axis, keepdims=self.keepdims).astype(gy.dtype)
        return self.spread(gy / Tensor(count)) * Tensor(chosen)


class Min(Max):
    def forward(self, x):
        return x.min(axis=self.axis, keepdims=self.keepdims)


class LogSumExp(Reduction):
    def forward(self, x):
        m = largest(x, self.axis)
        m = xp(x).where(xp(x).isfinite(m), m, x.dtype.type(0))
        y = xp(x).log(xp(x).exp(x - m).sum(axis=self.axis, keepdims=True)) + m
        return y if self.keepdims else y.squeeze(self.axis)

    def backward(self, gy):
        return self.spread(gy) * (self.inputs[0] - self.spread(self.output)).exp()


class Softmax(Op):
    saves = ("output",)

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        e = xp(x).exp(x - largest(x, self.axis))
        return e / e.sum(axis=self.axis, keepdims=True)

    def backward(self, gy):
        y = self.output
        return y * (gy - (gy * y).sum(self.axis, keepdims=True))


class LogSoftmax(Op):
    saves = ("output",)

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        shifted = x - largest(x, self.axis)
        return shifted - xp(x).log(xp(x).exp(shifted).sum(axis=self.axis, keepdims=True)) if x.size else shifted

    def backward(self, gy):
        return gy - self.output.exp() * gy.sum(self.axis, keepdims=True)


class Cumsum(Op):
    saves = ()

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        return x.cumsum(self.axis)

    def backward(self, gy):  # x[i] is a term of y[i], y[i+1], ..., so gx[i] = gy[i] + gy[i+1] + ...
        return flip(cumsum(flip(gy, self.axis), self.axis), self.axis)


def largest(x, axis):
    """``x.max(axis, keepdims=True)``, or zeros of that shape if x is empty."""
    top = x.max(axis=axis, keepdims=True) if x.size else x.sum(axis=axis, keepdims=True)
    return top if x.dtype.kind == "f" else top * 1.0  # x - top of unsigned integers would wrap around


def _axes(axis, ndim) -> tuple[int, ...]:
    return tuple(range(ndim)) if axis is None else tuple(axis) if isinstance(axis, tuple | list) else (axis,)


@in_float32
def sum(x, axis=None, keepdims: bool = False) -> Tensor:
    """Sum over ``axis``."""
    return Sum(axis, keepdims)(x)


@in_float32
def mean(x, axis=None, keepdims: bool = False) -> Tensor:
    """Mean over ``axis``."""
    total = sum(x, axis, keepdims)  # each sum has x.size / total.size terms
    return total / (x.size // (total.size or 1))


@in_float32
def var(x, axis=None, keepdims: bool = False) -> Tensor:
    """Mean squared distance from the mean over ``axis`` (divided by the count, as in NumPy)."""
    return mean((x - mean(x, axis, keepdims=True)) ** 2, axis, keepdims)


@in_float32
def std(x, axis=None, keepdims: bool = False) -> Tensor:
    """Square root of ``var``; its derivative is 0 where all values are equal, as in PyTorch."""
    v = var(x, axis, keepdims)
    zero = v.data == 0
    return where(zero, 0, sqrt(where(zero, 1, v)))


@in_float32
def prod(x, axis=None, keepdims: bool = False) -> Tensor:
    """Product over ``axis``, by repeatedly multiplying two halves, so that derivatives are right at zeros too."""
    if x.dtype.kind != "f":
        return Tensor(x.data.prod(axis=axis, keepdims=keepdims))
    axes = [check.axis("prod", a, x.ndim) for a in _axes(axis, x.ndim)]
    others = [i for i in range(x.ndim) if i not in axes]
    y = reshape(transpose(x, *axes, *others), math.prod(x.shape[i] for i in axes), *[x.shape[i] for i in others])
    if not len(y):
        y = pad(y, [(0, 1)] + [(0, 0)] * len(others), 1)  # the empty product is 1
    while len(y) > 1:
        half = len(y) // 2
        y = concatenate([y[:half] * y[half : 2 * half], y[2 * half :]])
    return reshape(y, [1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i in others])


@in_float32
def cumsum(x, axis: int | None = None) -> Tensor:
    """Cumulative sum along ``axis``, or of the flattened x if ``axis`` is None."""
    return Cumsum(0)(reshape(x, -1)) if axis is None else Cumsum(check.axis("cumsum", axis, x.ndim))(x)


def max(x, axis=None, keepdims: bool = False) -> Tensor:
    """Largest value over ``axis``; ties share the gradient equally."""
    return Max(axis, keepdims)(x)


def min(x, axis=None, keepdims: bool = False) -> Tensor:
    """Smallest value over ``axis``; ties share the gradient equally."""
    return Min(axis, keepdims)(x)


@in_float32
def logsumexp(x, axis=None, keepdims: bool = False) -> Tensor:
    """log sum exp(x) over ``axis``, without overflow. It is -inf, with gradient nan, if x is empty or all -inf."""
    return LogSumExp(axis, keepdims)(x)


@in_float32
def softmax(x, axis=-1) -> Tensor:
    """exp(x) / sum exp(x) over ``axis``, without overflow."""
    return Softmax(axis)(x)


@in_float32
def log_softmax(x, axis=-1) -> Tensor:
    """x - logsumexp(x) over ``axis``."""
    return LogSoftmax(axis)(x)
