"""Convolution: three operations closed under differentiation.

With x the input, w the filters and y the output of a convolution,

    conv2d(x, w)            = y        the forward pass
    conv_transpose2d(gy, w) = gx       its derivative in x
    conv_filter_grad(x, gy) = gw       its derivative in w

and each one's derivatives are the other two. Every kernel is a matrix product with the *columns* of the images: for
each kept tap (i, j) of the filter and each channel, the images as that tap sees them, in one long row.

    y = W cols(x),    gw = gy cols(x)^T,    gx = cols^T(W^T gy)

with W the filters as an (out, taps * in) matrix, and cols^T adding each row back to where it was seen. Taps that a mask
forbids are in none of them: neither multiplied nor stored, and their gradient is exactly zero.

At stride 1 the derivative in x is itself a convolution, with the filters turned by 180 degrees, and the columns of gy
that it takes serve the derivative in w as well.
"""

import math

import numpy as np

from tinygen.backend import device_of, xp
from tinygen.ops import elementwise
from tinygen.tensor import Op, Tensor, recording

# Numbers in a block of columns. On the host 1 MB of float32, since larger ones leave the core's cache (2 to 3 times
# slower); a device wants few large kernels.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
FEW = 32  # rows in a matrix product: with fewer it pays to copy more and multiply at once
SMALL = 256  # pixels in an image: with fewer it pays in most cases to multiply all images at once


# -- how images lie for the matrix product: (n, C, H, W) as (groups, C, length), and what the taps see of them


class Layout:
    """From images of ``size`` to ones of ``out_size``.

    ``columns``: images of ``size`` -> parts, each a slice of the taps * C rows and those rows, (groups, rows, length).
    ``rows`` and ``images``: images of ``out_size`` -> (groups, C, length), and back.
    """

    smallest = 1  # images in a block

    def __init__(self, size, out_size, stride, padding, taps):
        self.size, self.out_size, self.stride, self.padding, self.taps = size, out_size, stride, padding, taps

    def copies(self, channels):
        """Of an image of so many channels in its columns."""
        return len(self.taps)

    def blocks(self, x, channels):
        """Slices of the batch x with about CHUNK numbers in the columns of so many channels."""
        numbers = channels * self.copies(channels) * math.prod(self.out_size)
        step = max(self.smallest, CHUNK[device_of(x)] // max(1, numbers))
        return (slice(start, start + step) for start in range(0, len(x), step))


class ImageByImage(Layout):
    """For 1x1: every image is its own columns, (n, C, H * W)."""

    def columns(self, x):
        return [(slice(None), self.rows(x))]

    def rows(self, g):
        return g.reshape(*g.shape[:2], -1)

    def images(self, rows):
        return rows.reshape(*rows.shape[:2], *self.out_size)


class RowByRow(Layout):
    """For stride 1 and large images: the rows of a padded image one behind the other, (n, C, P * row) with
    row = W + 2 pw >= Q.

    What a tap sees is then one contiguous run, copied at full speed, and what the tap below it sees is the same run one
    row further on: there are columns for the taps of one row alone, and a product for each row of the kernel (measured
    against columns for all taps: 0.75 of the time for 7x7 with 16 channels, 0.8 to 1.03 for 3x3); for few channels
    there are columns for all taps. What a tap sees beyond Q in a row means nothing, and meets zeros or is dropped.
    """

    def __init__(self, *geometry):
        super().__init__(*geometry)
        self.row = self.size[1] + 2 * self.padding[1]
        self.top, self.bottom = self.taps[0][0], self.taps[-1][0]
        self.left, right = (f(j for _, j in self.taps) for f in (min, max))
        self.across = right + 1 - self.left

    def copies(self, channels):
        return len(self.taps) if channels * self.across < FEW else self.across

    def runs(self):
        """Neighbouring taps: their numbers as a range, the row and the first column."""
        starts = [k for k, (i, j) in enumerate(self.taps) if k == 0 or self.taps[k - 1] != (i, j - 1)]
        for start, end in zip(starts, [*starts[1:], len(self.taps)]):
            yield start, end, *self.taps[start]

    def columns(self, x):
        (n, c, h, w), (ph, pw), p = x.shape, self.padding, self.out_size[0]
        padded = xp(x).zeros((n, c, h + 2 * ph + 1, self.row), x.dtype)  # the last row is read, but means nothing
        padded[:, :, ph : ph + h, pw : pw + w] = x
        padded = padded.reshape(n, c, -1)
        if self.copies(c) == len(self.taps):
            cols = xp(x).empty((n, len(self.taps), c, p * self.row), x.dtype)
            for k, (i, j) in enumerate(self.taps):
                cols[:, k] = padded[:, :, i * self.row + j :][:, :, : p * self.row]
            return [(slice(None), cols.reshape(n, -1, p * self.row))]
        length = (p + self.bottom - self.top) * self.row
        cols = xp(x).empty((n, self.across, c, length), x.dtype)
        for k in range(self.across):
            cols[:, k] = padded[:, :, self.top * self.row + self.left + k :][:, :, :length]
        cols = cols.reshape(n, -1, length)
        parts = []
        for start, end, i, j in self.runs():
            first, below = (j - self.left) * c, (i - self.top) * self.row
            seen = cols[:, first : first + (end - start) * c, below : below + p * self.row]
            parts.append((slice(start * c, end * c), seen))
        return parts

    def rows(self, g):
        n, c, p, q = g.shape
        rows = xp(g).zeros((n, c, p, self.row), g.dtype)
        rows[..., :q] = g
        return rows.reshape(n, c, -1)

    def images(self, rows):
        p, q = self.out_size
        return rows.reshape(*rows.shape[:2], p, self.row)[..., :q]


class ImagesLast(Layout):
    """For any stride: (1, C, P * Q * n). Pixels apart from each other are copied in runs too, of one pixel's images.

    All images of a block are in one matrix product: measured against RowByRow, 16 images, 3x3 with 32 to 64 channels:
    0.5 to 0.7 of the time on 7 x 7 pixels, 0.7 to 0.9 on 14 x 14, 1.1 to 1.2 on 28 x 28. (With one channel and 7x7 or
    more it is slower on 14 x 14 too.)
    """

    smallest = 16  # fewer make the runs too short

    def seen(self):
        """For each tap its number and the part of the padded images that it meets."""
        (p, q), (sh, sw) = self.out_size, self.stride
        for k, (i, j) in enumerate(self.taps):
            yield k, (..., slice(i, i + p * sh, sh), slice(j, j + q * sw, sw), slice(None))

    def padded(self, c, n, like):
        """Zeros (C, H, W, n) with room for the padding, and a view (n, C, H, W) of their inside."""
        (h, w), (ph, pw) = self.size, self.padding
        padded = xp(like).zeros((c, h + 2 * ph, w + 2 * pw, n), like.dtype)
        return padded, padded[:, ph : ph + h, pw : pw + w].transpose(3, 0, 1, 2)

    def columns(self, x):
        n, c = x.shape[:2]
        padded, inside = self.padded(c, n, x)
        inside[...] = x
        cols = xp(x).empty((len(self.taps), c, *self.out_size, n), x.dtype)
        for k, seen in self.seen():
            cols[k] = padded[seen]
        return [(slice(None), cols.reshape(1, len(self.taps) * c, -1))]

    def scattered(self, cols, n):
        """The transpose of ``columns``: each row added to where it was seen."""
        cols = cols.reshape(len(self.taps), -1, *self.out_size, n)
        padded, inside = self.padded(cols.shape[1], n, cols)
        for k, seen in self.seen():
            padded[seen] += cols[k]
        return inside

    def rows(self, g):
        return g.transpose(1, 2, 3, 0).reshape(1, g.shape[1], -1)

    def images(self, rows):
        return rows.reshape(rows.shape[1], *self.out_size, -1).transpose(3, 0, 1, 2)


def _layout(size, out_size, stride, padding, taps):
    pointwise = stride == (1, 1) and list(taps) == [padding] and size == out_size
    mostly_seen = size[1] + 2 * padding[1] <= 2 * out_size[1]  # of the rows that RowByRow copies
    by_row = stride == (1, 1) and mostly_seen and math.prod(out_size) >= SMALL
    kind = ImageByImage if pointwise else RowByRow if by_row else ImagesLast
    return kind(size, out_size, stride, padding, taps)


# -- the kernels, on arrays


def _matrix(w, taps):
    """(out, in, kh, kw) -> (out, taps * in)"""
    return xp(w).concatenate([w[:, :, i, j] for i, j in taps], axis=1)


def _filters(parts, kernel_size, taps):
    """(taps, out, in) -> (out, in, kh, kw), zero where there is no tap."""
    w = xp(parts).zeros((*parts.shape[1:], *kernel_size), parts.dtype)
    for k, (i, j) in enumerate(taps):
        w[:, :, i, j] = parts[k]
    return w


def _product(matrix, parts):
    """The matrix times columns, part by part."""
    m = xp(matrix)
    (rows, cols), *more = parts
    y = m.matmul(matrix[:, rows], cols)
    for rows, cols in more:
        y += m.matmul(matrix[:, rows], cols)
    return y


def _positive(x, relu):
    return xp(x).maximum(x, 0) if relu else x


def _correlate(x, out_size, geometry, matrix, b=None, relu=False):
    """``matrix cols(x) + b``: (n, C, H, W) -> (n, out, P, Q)"""
    layout, m = _layout(x.shape[2:], out_size, *geometry), xp(x, matrix)
    y = m.empty((len(x), len(matrix), *out_size), x.dtype)
    for part in layout.blocks(x, x.shape[1]):
        product = _product(matrix, layout.columns(_positive(x[part], relu)))
        if b is not None:
            product += b[:, None]  # while it is in the cache
        y[part] = layout.images(product)
    return y


def _outer(x, g, geometry):
    """``g cols(x)^T``, (taps, out, C), for g (n, out, P, Q)."""
    layout, m = _layout(x.shape[2:], g.shape[2:], *geometry), xp(x, g)
    gw = m.zeros((len(geometry[-1]) * x.shape[1], g.shape[1]), x.dtype)
    for part in layout.blocks(x, x.shape[1]):
        _add_outer(gw, layout.columns(x[part]), layout.rows(g[part]))
    return gw.reshape(-1, x.shape[1], g.shape[1]).swapaxes(1, 2)


def _add_outer(total, columns, rows):
    """total (taps * C, out) += columns rows^T"""
    for part, cols in columns:
        # OpenBLAS multiplies tall by narrow up to 1.7 times faster than the other way around.
        total[part] += xp(cols, rows).matmul(cols, rows.swapaxes(1, 2)).sum(0)


def _gradients(g, x, geometry, matrix, relu):
    """From the columns of g, the gradient of what was made of x: those of x, of b, and ``cols(g) x^T``, (taps, out, C).

    Measured: 0.7 of the time of one after the other.
    """
    layout, m = _layout(g.shape[2:], x.shape[2:], *geometry), xp(g, x, matrix)
    gx, gb = m.empty(x.shape, x.dtype), m.zeros(g.shape[1], x.dtype)
    gw, ones = m.zeros((matrix.shape[1], x.shape[1]), x.dtype), m.ones(math.prod(g.shape[2:]), g.dtype)
    for part in layout.blocks(x, g.shape[1]):
        cols = layout.columns(g[part])
        gx[part] = layout.images(_product(matrix, cols))
        if relu:
            gx[part] *= x[part] > 0
        _add_outer(gw, cols, layout.rows(_positive(x[part], relu)))
        gb += (g[part].reshape(-1, *gb.shape, len(ones)) @ ones).sum(0)  # 0.3 of the time of g.sum((0, 2, 3))
    return gx, gb, gw.reshape(-1, len(gb), x.shape[1])


def _turned(kernel_size, stride, padding, taps):
    """Geometry of the convolution that is the derivative in x, with the taps from last to first, or None."""
    (kh, kw), (ph, pw) = kernel_size, padding
    if stride == (1, 1) and ph < kh and pw < kw:
        return stride, (kh - 1 - ph, kw - 1 - pw), [(kh - 1 - i, kw - 1 - j) for i, j in reversed(taps)]


def _spread(g, w, b, size, geometry, relu):
    """``cols^T(W^T g) + b``: (n, out, P, Q) -> (n, C, *size)"""
    layout, m, matrix = ImagesLast(size, g.shape[2:], *geometry), xp(g, w), _matrix(w, geometry[-1]).T
    x = m.empty((len(g), w.shape[1], *size), g.dtype)
    for part in layout.blocks(g, w.shape[1]):
        x[part] = layout.scattered(m.matmul(matrix, layout.rows(_positive(g[part], relu))), len(g[part]))
    if b is not None:
        x += b[:, None, None]
    return x


# -- the three operations


class ConvOp(Op):
    """``geometry``: stride, padding, taps. ``relu``: of the first input only what is positive counts."""

    def __init__(self, *geometry, relu=False):
        self.geometry, self.relu = geometry, relu

    def fused(self):
        """Whether derivatives in both inputs are wanted, and as arrays."""
        x, w, *_ = self.inputs
        return x.requires_grad and w.requires_grad and not recording()

    def rectified(self, gx=None):
        """The first input as it counts, or a gradient of that, turned into one of the input."""
        x = self.inputs[0]
        if gx is None:
            return elementwise.relu(x) if self.relu else x
        return gx * Tensor(x.data > 0) if self.relu else gx


class Conv2d(ConvOp):
    def forward(self, x, w, b=None):
        out_size = _out_size(x.shape[2:], w.shape[2:], *self.geometry)
        return _correlate(x, out_size, self.geometry, _matrix(w, self.geometry[-1]), b, self.relu)

    def backward(self, gy):
        x, w, *b = self.inputs
        size, back, turned = w.shape[2:], self.geometry[-1][::-1], _turned(w.shape[2:], *self.geometry)
        if turned and self.fused():
            matrix = _matrix(w.data.swapaxes(0, 1), back)
            gx, gb, gw = _gradients(gy.data, x.data, turned, matrix, self.relu)
            return Tensor(gx), Tensor(_filters(gw, size, back)), *(Tensor(gb) for _ in b)
        return (
            self.rectified(ConvTranspose2d(x.shape[2:], *self.geometry)(gy, w)) if x.requires_grad else None,
            ConvFilterGrad(size, *self.geometry)(self.rectified(), gy) if w.requires_grad else None,
            *(gy.sum((0, 2, 3)) for _ in b),
        )


class ConvTranspose2d(ConvOp):
    def __init__(self, size, *geometry, relu=False):
        super().__init__(*geometry, relu=relu)
        self.size = size  # of the result: several sizes lead to the same convolution output where the stride is not 1

    def forward(self, g, w, b=None):
        if turned := _turned(w.shape[2:], *self.geometry):
            return _correlate(g, self.size, turned, _matrix(w.swapaxes(0, 1), self.geometry[-1][::-1]), b, self.relu)
        return _spread(g, w, b, self.size, self.geometry, self.relu)

    def backward(self, gx):
        g, w, *b = self.inputs
        size, taps = w.shape[2:], self.geometry[-1]
        if self.fused():
            gg, gb, gw = _gradients(gx.data, g.data, self.geometry, _matrix(w.data, taps), self.relu)
            return Tensor(gg), Tensor(_filters(gw.swapaxes(1, 2), size, taps)), *(Tensor(gb) for _ in b)
        return (
            self.rectified(Conv2d(*self.geometry)(gx, w)) if g.requires_grad else None,
            ConvFilterGrad(size, *self.geometry)(gx, self.rectified()) if w.requires_grad else None,
            *(gx.sum((0, 2, 3)) for _ in b),
        )


class ConvFilterGrad(ConvOp):
    def __init__(self, kernel_size, *geometry):
        super().__init__(*geometry)
        self.kernel_size = kernel_size

    def forward(self, x, g):
        return _filters(_outer(x, g, self.geometry), self.kernel_size, self.geometry[-1])

    def backward(self, gw):
        x, g = self.inputs
        return (
            ConvTranspose2d(x.shape[2:], *self.geometry)(g, gw) if x.requires_grad else None,
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


def _out_size(size, kernel_size, stride, padding, *_):
    return tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel_size, stride))


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


def conv2d(x, w, b=None, stride=1, padding=0, mask=None, relu=False) -> Tensor:
    """Cross-correlation of x (N, in, H, W) with filters w (out, in, kh, kw), plus b (out,).

    ``stride`` and ``padding`` (zeros on both sides): an integer or (vertical, horizontal).
    ``mask``: boolean (kh, kw), the taps to keep; the others count as zero, cost nothing and get gradient zero.
    ``relu``: convolve max(x, 0), without an array of it that is kept for the derivative.
    Result: (N, out, P, Q) with P = (H + 2 padding - kh) // stride + 1.
    Raises ValueError where shapes do not fit, TypeError where dtypes differ.
    """
    x, w, b = _tensors(x, w, b)
    _check("conv2d", x, w, b, 1, 0)
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    if any(n + 2 * p < k for n, p, k in zip(x.shape[2:], padding, w.shape[2:])):
        raise ValueError(f"conv2d: x {x.shape} with padding {padding} is smaller than the kernel of w {w.shape}")
    return Conv2d(stride, padding, _taps(mask, w.shape[2:]), relu=relu)(x, w, *([] if b is None else [b]))


def conv_transpose2d(x, w, b=None, stride=1, padding=0, output_padding=0, relu=False) -> Tensor:
    """The derivative of conv2d in its input, as a layer: x (N, in, P, Q), w (in, out, kh, kw), b (out,).

    ``relu``: of max(x, 0), without an array of it that is kept for the derivative.
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
    return ConvTranspose2d(size, stride, padding, _taps(None, w.shape[2:]), relu=relu)(
        x, w, *([] if b is None else [b])
    )


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
    size = _out_size(x.shape[2:], kernel_size, stride, padding)
    if gy.shape != (x.shape[0], gy.shape[1], *size):
        raise ValueError(
            f"conv_filter_grad: x {x.shape} and gy {gy.shape}: needs gy (N, out, P, Q) with (P, Q) = {size}"
        )
    return ConvFilterGrad(kernel_size, stride, padding, _taps(mask, kernel_size))(x, gy)
