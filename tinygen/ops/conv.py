"""Convolution: three operations closed under differentiation.

With x the input, w the filters and y the output of a convolution,

    conv2d(x, w)            = y        the forward pass
    conv_transpose2d(gy, w) = gx       its derivative in x
    conv_filter_grad(x, gy) = gw       its derivative in w

and each one's derivatives are the other two. Every kernel is a matrix product with the *columns* of an image: for each
kept tap (i, j) of the filter and each channel, the image as that tap sees it, one row of length P*Q.

    y[n] = W cols(x[n]),    gw = sum_n gy[n] cols(x[n])^T,    gx[n] = cols^T(W^T gy[n])

with W the filters as an (out, taps * in) matrix, and cols^T adding each row back to where it was seen. Taps that a mask
forbids are in none of them: neither multiplied nor stored, and their gradient is exactly zero.
"""

import numpy as np

from tinygen.backend import xp
from tinygen.tensor import Op, Tensor

# Numbers in a block of columns, 1 MB of float32: larger ones leave the core's cache (2 to 3 times slower).
CHUNK = 1 << 18


# -- the three kernels, on arrays


def _columns(x, out_size, stride, padding, taps):
    """(n, C, H, W) -> (n, taps * C, P * row): what each tap sees, in rows of length ``row`` >= Q.

    With stride 1 an image's rows are laid out one behind the other with one gap of zeros between them, which serves as
    right border of one and left border of the next:

        x00 .. x0(W-1) 0 | x10 .. x1(W-1) 0 | ...        tap (i, j) starts at i * row + j

    Then what a tap sees is one contiguous run, copied at full speed (measured: 0.6 of the time of cutting out Q numbers
    a row); what falls into the gaps means nothing.
    """
    n, c, h, w = x.shape
    (p, q), (ph, pw) = out_size, padding
    if len(taps) == 1 and taps[0] == padding and stride == (1, 1) and out_size == (h, w):
        return x.reshape(n, c, h * w), w  # 1x1: the image is its own columns
    if stride == (1, 1) and q <= w + pw:  # an output row fits into one laid-out row
        row = w + pw
        flat = xp(x).zeros((n, c, (h + 2 * ph + 1) * row + pw), x.dtype)  # one more row, which only garbage reads
        inside = slice(ph * row + pw, (ph + h) * row + pw)
        flat[:, :, inside].reshape(n, c, h, row)[..., :w] = x
        cols = xp(x).empty((n, len(taps), c, p * row), x.dtype)
        for k, (i, j) in enumerate(taps):
            cols[:, k] = flat[:, :, i * row + j : i * row + j + p * row]
        return cols.reshape(n, len(taps) * c, p * row), row
    padded = xp(x).zeros((n, c, h + 2 * ph, w + 2 * pw), x.dtype)
    padded[:, :, ph : ph + h, pw : pw + w] = x
    cols = xp(x).empty((n, len(taps), c, p, q), x.dtype)
    for k, tap in enumerate(taps):
        cols[:, k] = padded[_seen(tap, out_size, stride)]
    return cols.reshape(n, len(taps) * c, p * q), q


def _seen(tap, out_size, stride):
    """The part of a padded image that a tap meets."""
    (i, j), (p, q), (sh, sw) = tap, out_size, stride
    return (..., slice(i, i + (p - 1) * sh + 1, sh), slice(j, j + (q - 1) * sw + 1, sw))


def _matrix(w, taps):
    """(out, in, kh, kw) -> (out, taps * in)"""
    return xp(w).stack([w[:, :, i, j] for i, j in taps], axis=1).reshape(w.shape[0], -1)


def _chunks(n, numbers):
    """Slices of the batch with about CHUNK numbers in them."""
    step = max(1, CHUNK // max(1, numbers))
    return (slice(start, start + step) for start in range(0, n, step))


def _conv(x, matrix, b, out_size, stride, padding, taps):
    n, out, (p, q) = x.shape[0], matrix.shape[0], out_size
    y = xp(x, matrix).empty((n, out, p, q), x.dtype)
    for part in _chunks(n, matrix.shape[1] * p * q):
        cols, row = _columns(x[part], out_size, stride, padding, taps)
        if row == q:
            product = xp(x).matmul(matrix, cols, out=y[part].reshape(-1, out, p * q))
            if b is not None:
                product += b[:, None]  # while the block is in the cache
        else:
            product = xp(x).matmul(matrix, cols).reshape(-1, out, p, row)[..., :q]
            if b is None:
                y[part] = product
            else:
                xp(x).add(product, b[:, None, None], out=y[part])
    return y


def _conv_transpose(g, w, b, in_size, stride, padding, taps):
    (n, out, p, q), (_, c, kh, kw), (ph, pw), (h, width) = g.shape, w.shape, padding, in_size
    if stride == (1, 1) and ph < kh and pw < kw:  # again a convolution, with the filters turned by 180 degrees
        turned = [(kh - 1 - i, kw - 1 - j) for i, j in taps]
        matrix = xp(w).stack([w[:, :, i, j].T for i, j in taps], axis=1).reshape(c, -1)
        return _conv(g, matrix, b, in_size, stride, (kh - 1 - ph, kw - 1 - pw), turned)
    matrix = _matrix(w, taps).T
    g = g.reshape(n, out, p * q)
    padded = xp(g, w).zeros((n, c, h + 2 * ph, width + 2 * pw), g.dtype)
    for part in _chunks(n, matrix.shape[0] * p * q):
        cols = xp(g).matmul(matrix, g[part]).reshape(-1, len(taps), c, p, q)
        for k, tap in enumerate(taps):
            padded[part][_seen(tap, (p, q), stride)] += cols[:, k]
    x = padded[:, :, ph : ph + h, pw : pw + width]
    return x if b is None else x + b[:, None, None]


def _filter_grad(x, g, kernel_size, stride, padding, taps):
    (n, out, p, q), c = g.shape, x.shape[1]
    total = xp(x, g).zeros((out, len(taps) * c), g.dtype)
    for part in _chunks(n, len(taps) * c * p * q):
        cols, row = _columns(x[part], (p, q), stride, padding, taps)
        seen = g[part]
        if row != q:
            seen = xp(g).zeros((*seen.shape[:3], row), g.dtype)  # zero where the columns mean nothing
            seen[..., :q] = g[part]
        total += xp(x).matmul(seen.reshape(-1, out, p * row), cols.swapaxes(1, 2)).sum(axis=0)
    w = xp(x).zeros((out, c, *kernel_size), g.dtype)
    for k, (i, j) in enumerate(taps):
        w[:, :, i, j] = total[:, k * c : (k + 1) * c]
    return w


# -- the three operations


class ConvOp(Op):
    def __init__(self, stride, padding, taps):
        self.geometry = stride, padding, taps


class Conv2d(ConvOp):
    def forward(self, x, w, b=None):
        (sh, sw), (ph, pw), taps = self.geometry
        p = (x.shape[2] + 2 * ph - w.shape[2]) // sh + 1
        q = (x.shape[3] + 2 * pw - w.shape[3]) // sw + 1
        return _conv(x, _matrix(w, taps), b, (p, q), *self.geometry)

    def backward(self, gy):
        x, w, *b = self.inputs
        return (
            ConvTranspose2d(*self.geometry, x.shape[2:])(gy, w) if x.requires_grad else None,
            ConvFilterGrad(*self.geometry, w.shape[2:])(x, gy) if w.requires_grad else None,
            *(gy.sum((0, 2, 3)) for _ in b),
        )


class ConvTranspose2d(ConvOp):
    def __init__(self, stride, padding, taps, size):
        super().__init__(stride, padding, taps)
        self.size = size  # of the result: several sizes lead to the same convolution output where the stride is not 1

    def forward(self, g, w, b=None):
        return _conv_transpose(g, w, b, self.size, *self.geometry)

    def backward(self, gx):
        g, w, *b = self.inputs
        return (
            Conv2d(*self.geometry)(gx, w) if g.requires_grad else None,
            ConvFilterGrad(*self.geometry, w.shape[2:])(gx, g) if w.requires_grad else None,
            *(gx.sum((0, 2, 3)) for _ in b),
        )


class ConvFilterGrad(ConvOp):
    def __init__(self, stride, padding, taps, kernel_size):
        super().__init__(stride, padding, taps)
        self.kernel_size = kernel_size

    def forward(self, x, g):
        return _filter_grad(x, g, self.kernel_size, *self.geometry)

    def backward(self, gw):
        x, g = self.inputs
        return (
            ConvTranspose2d(*self.geometry, x.shape[2:])(g, gw) if x.requires_grad else None,
            Conv2d(*self.geometry)(x, gw) if g.requires_grad else None,
        )


# -- the public functions


def _pair(name, value, smallest):
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int | np.integer) and v >= smallest for v in pair):
        raise ValueError(f"{name}: got {value!r}, needs one or two integers >= {smallest}")
    return pair


def _taps(mask, kernel_size):
    if mask is None:
        mask = np.ones(kernel_size, bool)
    mask = np.asarray(mask)
    if mask.shape != tuple(kernel_size):
        raise ValueError(f"mask: has shape {mask.shape}, needs that of the kernel, {tuple(kernel_size)}")
    if not mask.any():
        raise ValueError("mask: keeps no tap")
    return [(int(i), int(j)) for i, j in np.argwhere(mask)]


def _check(op, x, w, b, w_axis, b_axis):
    """x (N, C, H, W) against w, whose axis ``w_axis`` meets x's channels and ``b_axis`` the bias."""
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"{op}: x {x.shape} and w {w.shape} need four axes each")
    if x.shape[1] != w.shape[w_axis]:
        raise ValueError(f"{op}: x has {x.shape[1]} channels, w expects {w.shape[w_axis]} (x {x.shape}, w {w.shape})")
    if x.dtype != w.dtype or x.dtype.kind != "f":
        raise TypeError(f"{op}: x is {x.dtype}, w is {w.dtype}: needs one floating dtype")
    if b is not None and (b.shape != (w.shape[b_axis],) or b.dtype != w.dtype):
        raise ValueError(f"{op}: b is {b.shape} {b.dtype}, needs ({w.shape[b_axis]},) {w.dtype} (w {w.shape})")


def _tensors(*xs):
    return [x if x is None or isinstance(x, Tensor) else Tensor(x) for x in xs]


def conv2d(x, w, b=None, stride=1, padding=0, mask=None) -> Tensor:
    """Cross-correlation of x (N, in, H, W) with filters w (out, in, kh, kw), plus b (out,).

    ``stride`` and ``padding`` (zeros on both sides): an integer or (vertical, horizontal).
    ``mask``: boolean (kh, kw), the taps to keep; the others count as zero, cost nothing and get gradient zero.
    Result: (N, out, P, Q) with P = (H + 2 padding - kh) // stride + 1.
    Raises ValueError where shapes do not fit, TypeError where dtypes differ.
    """
    x, w, b = _tensors(x, w, b)
    _check("conv2d", x, w, b, 1, 0)
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    if any(n + 2 * p < k for n, p, k in zip(x.shape[2:], padding, w.shape[2:])):
        raise ValueError(f"conv2d: x {x.shape} with padding {padding} is smaller than the kernel of w {w.shape}")
    return Conv2d(stride, padding, _taps(mask, w.shape[2:]))(x, w, *([] if b is None else [b]))


def conv_transpose2d(x, w, b=None, stride=1, padding=0, output_padding=0) -> Tensor:
    """The derivative of conv2d in its input, as a layer: x (N, in, P, Q), w (in, out, kh, kw), b (out,).

    Result: (N, out, H, W) with H = (P - 1) stride - 2 padding + kh + output_padding.
    Raises ValueError where shapes do not fit (output_padding must be smaller than the stride), TypeError for dtypes.
    """
    x, w, b = _tensors(x, w, b)
    _check("conv_transpose2d", x, w, b, 0, 1)
    stride, padding, extra = (
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("output_padding", output_padding, 0),
    )
    if any(e >= s for e, s in zip(extra, stride)):
        raise ValueError(f"conv_transpose2d: output_padding {extra} must be smaller than stride {stride}")
    size = tuple((n - 1) * s - 2 * p + k + e for n, s, p, k, e in zip(x.shape[2:], stride, padding, w.shape[2:], extra))
    if min(size) < 1:
        raise ValueError(
            f"conv_transpose2d: x {x.shape}, w {w.shape} with padding {padding} give an empty image {size}"
        )
    return ConvTranspose2d(stride, padding, _taps(None, w.shape[2:]), size)(x, w, *([] if b is None else [b]))


def conv_filter_grad(x, gy, kernel_size, stride=1, padding=0, mask=None) -> Tensor:
    """The derivative of ``conv2d(x, w)`` in w, applied to gy: x (N, in, H, W), gy (N, out, P, Q).

    Result: (out, in, kh, kw), zero where ``mask`` forbids. Raises ValueError where x and gy do not belong together.
    """
    x, gy = _tensors(x, gy)
    if x.ndim != 4 or gy.ndim != 4:
        raise ValueError(f"conv_filter_grad: x {x.shape} and gy {gy.shape} need four axes each")
    if x.dtype != gy.dtype or x.dtype.kind != "f":
        raise TypeError(f"conv_filter_grad: x is {x.dtype}, gy is {gy.dtype}: needs one floating dtype")
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    kernel_size = _pair("kernel_size", kernel_size, 1)
    size = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[2:], padding, kernel_size, stride))
    if gy.shape != (x.shape[0], gy.shape[1], *size):
        raise ValueError(
            f"conv_filter_grad: x {x.shape} and gy {gy.shape}: needs gy (N, out, P, Q) with (P, Q) = {size}"
        )
    return ConvFilterGrad(stride, padding, _taps(mask, kernel_size), kernel_size)(x, gy)
