"""Pooling and resizing of images (N, C, H, W), or of anything whose last two axes are height and width."""

import numpy as np

from tinygen import check
from tinygen.backend import xp
from tinygen.ops.matmul import matmul
from tinygen.ops.reduce import max, mean
from tinygen.ops.shape import pad
from tinygen.tensor import Op, Tensor


class Windows(Op):
    """All windows, ``stride`` apart: (..., H, W) -> (kh kw, ..., P, Q); the first axis is the position in a window."""

    saves = ()

    def __init__(self, size, stride):
        self.size, self.stride = size, stride

    def forward(self, x):
        return xp(x).stack(_places(x, self.size, self.stride))

    def backward(self, gy):
        return Overlaid(self.inputs[0].shape, self.size, self.stride)(gy)


class Overlaid(Op):
    """The derivative of Windows: it adds each entry to its pixel, (kh kw, ..., P, Q) -> (..., H, W)."""

    saves = ()

    def __init__(self, shape, size, stride):
        self.shape, self.size, self.stride = shape, size, stride

    def forward(self, windows):
        x = xp(windows).zeros(self.shape, windows.dtype)
        for place, values in zip(_places(x, self.size, self.stride), windows):
            place += values
        return x

    def backward(self, gy):
        return Windows(self.size, self.stride)(gy)


def _places(x, size, stride):
    """Views of x, each (..., P, Q): view k holds entry k of every window."""
    (down, right), (rows, columns) = stride, (n - k + 1 for n, k in zip(x.shape[-2:], size))
    return [x[..., i : i + rows : down, j : j + columns : right] for i, j in np.ndindex(*size)]


def _windows(op, x, kernel_size, stride, padding, value):
    """The windows of x, padded with ``value``."""
    size, padding = check.pair("kernel_size", kernel_size), check.pair("padding", padding, 0)
    stride = check.pair("stride", size if stride is None else stride)
    if x.ndim < 2 or any(2 * p > k or n + 2 * p < k for n, k, p in zip(x.shape[-2:], size, padding)):
        raise ValueError(
            f"{op}: x {x.shape} with padding {padding} needs (..., H, W) of at least kernel_size {size}, "
            "padding at most half of it"
        )
    if any(padding):
        x = pad(x, [(0, 0)] * (x.ndim - 2) + [(p, p) for p in padding], value)
    return Windows(size, stride)(x)


def avg_pool2d(x, kernel_size, stride=None, padding=0) -> Tensor:
    """Mean of each window, including zeros of the padding: (..., H, W) -> (..., P, Q).

    ``kernel_size``, ``stride`` (None: the kernel size) and ``padding``: an integer or (vertical, horizontal). As in
    PyTorch, P = (H + 2 padding - kh) // stride + 1. Raises ValueError where they do not fit x.
    """
    return mean(_windows("avg_pool2d", x, kernel_size, stride, padding, 0), 0)


def max_pool2d(x, kernel_size, stride=None, padding=0) -> Tensor:
    """Largest value of each window; ties share the gradient equally. Shapes and arguments as in ``avg_pool2d``."""
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return max(_windows("max_pool2d", x, kernel_size, stride, padding, lowest), 0)


def interpolate(x, size, mode: str = "nearest") -> Tensor:
    """x resized to ``size``, an integer or (height, width): (..., H, W) -> (..., *size).

    ``mode``: ``"nearest"``, or ``"bilinear"`` between the centres of pixels, PyTorch's ``align_corners=False``.
    Raises ValueError for another mode, a size below 1, or an x without height and width.
    """
    check.choice("interpolate: mode", mode, "nearest", "bilinear")
    if x.ndim < 2:
        raise ValueError(f"interpolate: x has shape {x.shape}, needs (..., H, W)")
    height, width = check.pair("size", size)
    rows, columns = (_resizing(x, axis, n, mode) for axis, n in ((-2, height), (-1, width)))
    return matmul(matmul(rows, x), columns.T)


def _resizing(x, axis, size, mode):
    """The matrix (size, n) that resizes an axis of n entries to ``size``."""
    m, n = xp(x.data), x.shape[axis]
    if mode == "nearest":
        source = m.arange(size) * n // size
    else:
        source = m.clip((m.arange(size) + 0.5) * (n / size) - 0.5, 0, n - 1)
    weights = m.maximum(0, 1 - m.abs(source[:, None] - m.arange(n)))  # falls from 1 at the source to 0 one pixel away
    return Tensor(weights.astype(x.dtype if x.dtype.kind == "f" else np.float32))
