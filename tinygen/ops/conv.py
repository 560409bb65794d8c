"""Convolution: three operations closed under differentiation.

With x the images, w the filters and y the result of a convolution,

    conv2d(x, w)            = y        the forward pass
    conv_transpose2d(gy, w) = gx       the gradient with respect to x
    conv_filter_grad(x, gy) = gw       the gradient with respect to w

and the derivatives of each are the other two. All are matrix products with the *columns* of the images (im2col): row p
holds the inputs that pixel p of y sees, all channels of each kernel tap.

    y = cols(x) W,    gw = cols(x)^T gy,    gx = cols^T(gy W^T)

W is the filters as a (taps * in, out) matrix, y and gy are (pixels, out), and cols^T (col2im) adds each number to the
input it was read from. Masked taps are left out: they cost nothing, and their gradient is exactly zero.

Images have shape (N, C, H, W) but lie in memory as (N, H, W, C), as with PyTorch's ``channels_last``: neighbouring taps
are then contiguous, and a 1x1 convolution multiplies the images without copying them. NumPy keeps the memory order
through elementwise operations, so nearly all images arrive in it.
"""

import functools
import itertools

import numpy as np

from tinygen import check
from tinygen.backend import device_of, xp
from tinygen.ops.shape import broadcast_to
from tinygen.tensor import Op, Tensor, as_array, recording

# Size of a block of columns: 1 MB of float32 fits the cache of a core; a GPU needs few, large products.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}


class Geometry:
    """Which pixels of the images, of ``size`` (H, W), each pixel of the result, of ``out_size`` (P, Q), sees.

    ``rectangles``: the unmasked taps as ``(first, i, j, rows, columns)``: (i, j) is the upper left tap of a rectangle,
    and ``first`` is the number of taps before it. A kernel without mask is one rectangle, a causal mask gives two.
    """

    def __init__(self, size, kernel_size, stride, padding, mask):
        self.size, self.kernel_size, self.stride, self.padding, self.mask = size, kernel_size, stride, padding, mask
        self.out_size = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(size, padding, kernel_size, stride))
        if min(self.out_size) < 1:
            raise ValueError(
                f"convolution: images {size}, padding {padding}, are smaller than the kernel {kernel_size}"
            )
        self.padded_size = tuple(n + 2 * p for n, p in zip(size, padding))
        self.inside = (slice(None), *(slice(p, p + n) for n, p in zip(size, padding)))  # the image within its padding
        self.rectangles = list(_rectangles(mask))
        self.taps = [(i + k, j + l) for _, i, j, m, n in self.rectangles for k in range(m) for l in range(n)]
        self.pointwise = kernel_size == stride == (1, 1) and padding == (0, 0)

    @functools.cached_property
    def turned(self):
        """At stride 1, gx is a convolution of gy with rotated filters: its geometry; None where gx is not."""
        (kh, kw), (ph, pw) = self.kernel_size, self.padding
        if self.stride == (1, 1) and ph < kh and pw < kw:
            mask = tuple(row[::-1] for row in self.mask[::-1])
            return geometry(self.out_size, self.kernel_size, self.stride, (kh - 1 - ph, kw - 1 - pw), mask)

    def columns(self, x):
        """im2col: images (n, H, W, C) -> (n * P * Q, taps * C), what each pixel of the result sees."""
        (n, _, _, c), (p, q), (sh, sw), m = x.shape, self.out_size, self.stride, xp(x)
        if self.pointwise:
            return x.reshape(n * p * q, c)
        h, w = self.padded_size
        padded = m.zeros((n, h, w, c), x.dtype)
        padded[self.inside] = x
        cols = m.empty((n, p, q, len(self.taps) * c), x.dtype)
        # In bytes: to the next image, row and column of the result, row of taps, and number within a row of taps
        strides = [x.dtype.itemsize * step for step in (h * w * c, sh * w * c, sw * c, w * c, 1)]
        for first, i, j, rows, columns in self.rectangles:
            shape = n, p, q, rows, columns * c  # a row of taps with all channels is contiguous
            seen = m.lib.stride_tricks.as_strided(padded[:, i:, j:], shape, strides)
            cols[..., first * c : (first + rows * columns) * c].reshape(shape)[...] = seen
        return cols.reshape(n * p * q, len(self.taps) * c)

    def matrix(self, w):
        """Filters (out, in, kh, kw) -> (taps * in, out)"""
        w = w.transpose(2, 3, 1, 0)  # (kh, kw, in, out)
        parts = [w[i : i + m, j : j + n].reshape(m * n * w.shape[2], w.shape[3]) for _, i, j, m, n in self.rectangles]
        return parts[0] if len(parts) == 1 else xp(w).concatenate(parts)

    def filters(self, matrix):
        """The inverse of ``matrix``: (taps * in, out) -> (out, in, kh, kw), zero at masked taps."""
        c, out = len(matrix) // len(self.taps), matrix.shape[1]
        w = xp(matrix).zeros((*self.kernel_size, c, out), matrix.dtype)
        for first, i, j, m, n in self.rectangles:
            w[i : i + m, j : j + n] = matrix[first * c : (first + m * n) * c].reshape(m, n, c, out)
        return w.transpose(3, 2, 0, 1)

    def blocks(self, x, channels):
        """Slices of the batch x, each with about CHUNK numbers in its columns if the images have ``channels``."""
        numbers = len(self.taps) * channels * self.out_size[0] * self.out_size[1]
        step = max(1, CHUNK[device_of(x)] // max(1, numbers))
        return [slice(start, start + step) for start in range(0, len(x), step)]


geometry = functools.lru_cache(Geometry)


def _rectangles(mask):
    """Cut the True entries of a mask into rectangles: one for each run of True in each group of equal rows."""
    first = i = 0
    for row, same in itertools.groupby(mask):
        rows, j = len(list(same)), 0
        for kept, run in itertools.groupby(row):
            columns = len(list(run))
            if kept:
                yield first, i, j, rows, columns
                first += rows * columns
            j += columns
        i += rows


def _multiply(x, geo, w=None, b=None, g=None):
    """``cols(x) W + b`` (n, out, P, Q) and ``cols(x)^T g`` (out, C, kh, kw), for x (n, C, H, W) and g (n, out, P, Q).

    Both come from one pass over the columns. The first is None without w, the second without g.
    """
    m, x = xp(x), x.transpose(0, 2, 3, 1)  # (n, H, W, C)
    if w is not None:
        matrix, y = geo.matrix(w), m.empty((len(x), *geo.out_size, len(w)), x.dtype)
    if b is not None:
        bias = m.tile(b, geo.out_size[1])  # (Q * out,), for a row of pixels: adding few channels at a time is slow
    if g is not None:
        g = g.transpose(0, 2, 3, 1)  # (n, P, Q, out)
        total = m.zeros((len(geo.taps) * x.shape[3], g.shape[3]), x.dtype)  # (taps * C, out)
    for part in geo.blocks(x, x.shape[3]):
        cols = geo.columns(x[part])  # (pixels, taps * C)
        if w is not None:
            pixels = y[part].reshape(len(cols), len(w))  # (pixels, out), a view of y
            m.matmul(cols, matrix, out=pixels)
            if b is not None:
                pixels.reshape(len(pixels) // geo.out_size[1], len(bias))[...] += bias
        if g is not None:
            total += cols.T @ g[part].reshape(len(cols), g.shape[3])
    return None if w is None else y.transpose(0, 3, 1, 2), None if g is None else geo.filters(total)


def _spread(g, w, b, geo):
    """``cols^T(g W^T) + b``: (n, out, P, Q) -> (n, C, H, W)"""
    (n, out, p, q), c, (sh, sw), m = g.shape, w.shape[1], geo.stride, xp(g, w)
    g, matrix = g.transpose(0, 2, 3, 1), geo.matrix(w).T  # (n, P, Q, out), (out, taps * C)
    padded = m.zeros((n, *geo.padded_size, c), g.dtype)
    for part in geo.blocks(g, c):  # cols is (images, P, Q, taps, C)
        cols = (g[part].reshape(len(g[part]) * p * q, out) @ matrix).reshape(len(g[part]), p, q, len(geo.taps), c)
        for k, (i, j) in enumerate(geo.taps):
            padded[part, i : i + p * sh : sh, j : j + q * sw : sw] += cols[:, :, :, k]
    x = padded[geo.inside]  # (n, H, W, C)
    return (x if b is None else x + b).transpose(0, 3, 1, 2)


def _turn(w):
    """Rotate filters by 180 degrees and swap in and out: (out, in, kh, kw) -> (in, out, kh, kw)."""
    return w[:, :, ::-1, ::-1].swapaxes(0, 1)


# -- the three operations; their derivatives use the same geometry


class ConvOp(Op):
    saves = ("inputs",)

    def __init__(self, geo):
        self.geo = geo


class Conv2d(ConvOp):
    def forward(self, x, w, b=None):
        return _multiply(x, self.geo, w, b)[0]

    def backward(self, gy):
        x, w, *b = self.inputs
        if self.geo.turned and not recording() and x.requires_grad and w.requires_grad:
            # Both gradients from one set of columns, which saves 6 % of a training step
            gx, gw = _multiply(gy.data, self.geo.turned, _turn(w.data), g=x.data)
            gx, gw = Tensor(gx), Tensor(_turn(gw))
        else:
            gx = ConvTranspose2d(self.geo)(gy, w) if x.requires_grad else None
            gw = ConvFilterGrad(self.geo)(x, gy) if w.requires_grad else None
        return gx, gw, *(ChannelSums()(gy) for _ in b)


class ConvTranspose2d(ConvOp):
    def forward(self, g, w, b=None):
        if self.geo.turned:
            return _multiply(g, self.geo.turned, _turn(w), b)[0]
        return _spread(g, w, b, self.geo)

    def backward(self, gx):
        g, w, *b = self.inputs
        if not recording() and g.requires_grad and w.requires_grad:
            gg, gw = map(Tensor, _multiply(gx.data, self.geo, w.data, g=g.data))
        else:
            gg = Conv2d(self.geo)(gx, w) if g.requires_grad else None
            gw = ConvFilterGrad(self.geo)(gx, g) if w.requires_grad else None
        return gg, gw, *(ChannelSums()(gx) for _ in b)


class ConvFilterGrad(ConvOp):
    def forward(self, x, g):
        return _multiply(x, self.geo, g=g)[1]

    def backward(self, gw):
        x, g = self.inputs
        return (
            ConvTranspose2d(self.geo)(g, gw) if x.requires_grad else None,
            Conv2d(self.geo)(x, gw) if g.requires_grad else None,
        )


class ChannelSums(Op):
    """The gradient with respect to b: it sums over images and pixels, (N, C, H, W) -> (C,)."""

    saves = ()

    def forward(self, g):
        pixels = g.transpose(0, 2, 3, 1).reshape(g.shape[0] * g.shape[2] * g.shape[3], g.shape[1])
        return xp(g).ones(len(pixels), g.dtype) @ pixels  # takes a fifth of the time of pixels.sum(0)

    def backward(self, gb):
        return broadcast_to(gb.reshape(gb.size, 1, 1), self.inputs[0].shape)


# -- the public functions

AXES = {"x": "NCHW", "gy": "NCPQ", "w": ("out", "in", "kh", "kw")}


def _mask(mask, kernel_size):
    if mask is None:
        return ((True,) * kernel_size[1],) * kernel_size[0]
    mask = np.asarray(as_array(mask, "mask"), bool)
    if mask.shape != tuple(kernel_size) or not mask.any():
        raise ValueError(f"mask: {mask.shape} keeps {mask.sum()} taps, needs at least one of {tuple(kernel_size)}")
    return tuple(map(tuple, mask.tolist()))


def _tensors(op, **arrays):
    """Images and filters as Tensors. Raises unless each has four axes and both have one floating dtype."""
    tensors = [check.tensor(f"{op}: {name}", x, *AXES[name]) for name, x in arrays.items()]
    if tensors[0].dtype != tensors[1].dtype or tensors[0].dtype.kind != "f":
        given = " and ".join(f"{name} {x.shape} {x.dtype}" for name, x in zip(arrays, tensors))
        raise TypeError(f"{op}: {given} need one floating dtype")
    return tensors


def _bias(op, x, w, b, axis):
    """Check x's channels against axis ``axis`` of w, and b's shape; return b as a list, empty for None."""
    channels, out = w.shape[axis], w.shape[1 - axis]
    if x.shape[1] != channels:
        raise ValueError(f"{op}: x has {x.shape[1]} channels, w expects {channels} (x {x.shape}, w {w.shape})")
    if b is None:
        return []
    b = check.tensor(f"{op}: b", b, out)
    if b.dtype != w.dtype:
        raise ValueError(f"{op}: b is {b.shape} {b.dtype}, needs ({out},) {w.dtype} (w {w.shape})")
    return [b]


def conv2d(x, w, b=None, stride=1, padding=0, mask=None) -> Tensor:
    """Cross-correlation of x (N, in, H, W) with filters w (out, in, kh, kw), plus b (out,).

    ``stride`` and ``padding`` (zeros on both sides): an integer or (vertical, horizontal).
    ``mask``: boolean (kh, kw), True at the taps to keep; the others count as zero, cost nothing and get gradient zero.
    Result: (N, out, P, Q) with P = (H + 2 padding - kh) // stride + 1.
    Raises ValueError if shapes, or the dtype of b, do not fit, TypeError if the dtypes of x and w differ.
    """
    x, w = _tensors("conv2d", x=x, w=w)
    b, stride, padding = _bias("conv2d", x, w, b, 1), check.pair("stride", stride), check.pair("padding", padding, 0)
    geo = geometry(x.shape[2:], w.shape[2:], stride, padding, _mask(mask, w.shape[2:]))
    return Conv2d(geo)(x, w, *b)


def conv_transpose2d(x, w, b=None, stride=1, padding=0, output_padding=0) -> Tensor:
    """Transposed convolution of x (N, in, P, Q) with w (in, out, kh, kw), plus b (out,).

    Without b it is the gradient of conv2d with respect to its input.
    Result: (N, out, H, W) with H = (P - 1) stride - 2 padding + kh + output_padding.
    Raises ValueError if shapes do not fit or output_padding is not smaller than the stride, TypeError if the dtypes of
    x and w differ.
    """
    x, w = _tensors("conv_transpose2d", x=x, w=w)
    b = _bias("conv_transpose2d", x, w, b, 0)
    stride, padding = check.pair("stride", stride), check.pair("padding", padding, 0)
    extra = check.pair("output_padding", output_padding, 0)
    if any(e >= s for e, s in zip(extra, stride)):
        raise ValueError(f"conv_transpose2d: output_padding {extra} must be smaller than stride {stride}")
    size = tuple((n - 1) * s - 2 * p + k + e for n, s, p, k, e in zip(x.shape[2:], stride, padding, w.shape[2:], extra))
    if min(size) < 1:
        raise ValueError(f"conv_transpose2d: x {x.shape}, w {w.shape}, padding {padding} give an empty image {size}")
    geo = geometry(size, w.shape[2:], stride, padding, _mask(None, w.shape[2:]))
    return ConvTranspose2d(geo)(x, w, *b)


def conv_filter_grad(x, gy, kernel_size, stride=1, padding=0, mask=None) -> Tensor:
    """The gradient of ``conv2d(x, w)`` with respect to w, for x (N, in, H, W) and the output's gradient gy.

    gy: (N, out, P, Q). Result: (out, in, kh, kw), zero at masked taps. Raises ValueError if shapes do not fit.
    """
    x, gy = _tensors("conv_filter_grad", x=x, gy=gy)
    stride, padding = check.pair("stride", stride), check.pair("padding", padding, 0)
    kernel_size = check.pair("kernel_size", kernel_size)
    geo = geometry(x.shape[2:], kernel_size, stride, padding, _mask(mask, kernel_size))
    if gy.shape != (x.shape[0], gy.shape[1], *geo.out_size):
        raise ValueError(f"conv_filter_grad: gy is {gy.shape}, needs {(*x.shape[:1], 'out', *geo.out_size)}")
    return ConvFilterGrad(geo)(x, gy)
