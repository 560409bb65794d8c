"""Reductions over any axes: ``axis`` None (all), a number or a tuple, and ``keepdims``, as in NumPy."""

from tinygen.backend import xp
from tinygen.ops.shape import broadcast_to, reshape
from tinygen.tensor import Op, Tensor


class Reduction(Op):
    def __init__(self, axis, keepdims):
        self.axis, self.keepdims = tuple(axis) if isinstance(axis, list) else axis, keepdims

    def spread(self, t):
        """A Tensor of the result's shape, broadcast to the input's."""
        shape = self.inputs[0].shape
        kept = [1 if i in _axes(self.axis, len(shape)) else n for i, n in enumerate(shape)]
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
        largest = self.inputs[0].data == self.spread(self.output.detach()).data
        count = largest.sum(axis=self.axis, keepdims=self.keepdims).astype(gy.dtype)
        return self.spread(gy / Tensor(count)) * Tensor(largest)


class LogSumExp(Reduction):
    def forward(self, x):
        m = x.max(axis=self.axis, keepdims=True)
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
        e = xp(x).exp(x - x.max(axis=self.axis, keepdims=True))
        return e / e.sum(axis=self.axis, keepdims=True)

    def backward(self, gy):
        y = self.output
        return y * (gy - (gy * y).sum(self.axis, keepdims=True))


class LogSoftmax(Op):
    saves = ("output",)

    def __init__(self, axis):
        self.axis = axis

    def forward(self, x):
        shifted = x - x.max(axis=self.axis, keepdims=True)
        return shifted - xp(x).log(xp(x).exp(shifted).sum(axis=self.axis, keepdims=True))

    def backward(self, gy):
        return gy - self.output.exp() * gy.sum(self.axis, keepdims=True)


def _axes(axis, ndim) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % (ndim or 1) for a in (axis if isinstance(axis, tuple) else (axis,)))


def sum(x, axis=None, keepdims: bool = False) -> Tensor:
    """Sum over ``axis``."""
    return Sum(axis, keepdims)(x)


def mean(x, axis=None, keepdims: bool = False) -> Tensor:
    """Mean over ``axis``."""
    total = sum(x, axis, keepdims)  # its size tells how many were summed; where it is empty nothing is divided
    return total / (x.size // (total.size or 1))


def var(x, axis=None, keepdims: bool = False) -> Tensor:
    """Mean squared distance from the mean over ``axis`` (divided by the count, as in NumPy)."""
    return mean((x - mean(x, axis, keepdims=True)) ** 2, axis, keepdims)


def max(x, axis=None, keepdims: bool = False) -> Tensor:
    """Largest value over ``axis``; ties share the gradient equally."""
    return Max(axis, keepdims)(x)


def logsumexp(x, axis=None, keepdims: bool = False) -> Tensor:
    """log sum exp(x) over ``axis``, without overflow. All x -inf give -inf, with gradient nan."""
    return LogSumExp(axis, keepdims)(x)


def softmax(x, axis=-1) -> Tensor:
    """exp(x) / sum exp(x) over ``axis``, without overflow."""
    return Softmax(axis)(x)


def log_softmax(x, axis=-1) -> Tensor:
    """x - logsumexp(x) over ``axis``."""
    return LogSoftmax(axis)(x)
