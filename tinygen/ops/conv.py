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

import numpy as np

from tinygen.backend import xp
from tinygen.tensor import Op, Tensor, recording

# Numbers in a block of columns, 1 MB of float32: larger ones leave the core's cache (2 to 3 times slower).
CHUNK = 1 << 18


# -- the kernels, on arrays


def _grid(size, stride, padding):
    """Rows and columns of a phase: the pixels of the padded image that lie one stride apart."""
    return tuple(-(-(n + 2 * p) // s) for n, s, p in zip(size, stride, padding))


def _runs(taps, stride, length, row):
    """For each tap: its phase, and the run that it sees where the phase's rows lie one behind the other."""
    for i, j in taps:
        start = i // stride[0] * row + j // stride[1]
        yield i % stride[0], j % stride[1], ..., slice(start, start + length)


def _columns(x, out_size, stride, padding, taps):
    """(n, C, H, W) -> (1, taps * C, n * P * row): what each tap sees, in rows of length ``row`` >= Q.

    The padded images are cut into phases, and the rows of a phase laid out one behind the other. What a tap sees of its
    phase is then one contiguous run, copied at full speed (measured: 0.6 of the time of cutting out Q numbers a row);
    what lies beyond Q in a row means nothing. Returns the columns and ``row``.
    """
    (n, c, h, w), (sh, sw), (ph, pw) = x.shape, stride, padding
    if list(taps) == [padding] and out_size == (h, w):  # 1x1: each image is its own columns, (n, C, H * W)
        return _rows(x, None), None
    rows, row = _grid((h, w), stride, padding)
    padded = xp(x).zeros(
        (c, n, (rows + 1) * sh, row * sw), x.dtype
    )  # one row more, which only what means nothing reads
    padded[:, :, ph : ph + h, pw : pw + w] = x.swapaxes(0, 1)
    phases = padded.reshape(c, n, rows + 1, sh, row, sw).transpose(3, 5, 0, 1, 2, 4).reshape(sh, sw, c, n, -1)
    length = out_size[0] * row
    cols = xp(x).empty((len(taps), c, n, length), x.dtype)
    for k, run in enumerate(_runs(taps, stride, length, row)):
        cols[k] = phases[run]
    return cols.reshape(1, len(taps) * c, n * length), row


def _scattered(cols, size, stride, padding, taps):
    """The transpose of ``_columns``: (taps, C, n, P * row) -> (n, C, *size), adding each row to where it was seen."""
    (_, c, n, length), (sh, sw), (ph, pw), m = cols.shape, stride, padding, xp(cols)
    rows, row = _grid(size, stride, padding)
    phases = m.zeros((sh, sw, c, n, (rows + 1) * row), cols.dtype)
    for k, run in enumerate(_runs(taps, stride, length, row)):
        phases[run] += cols[k]
    padded = phases.reshape(sh, sw, c, n, rows + 1, row).transpose(2, 3, 4, 0, 5, 1).reshape(c, n, -1, row * sw)
    return padded[:, :, ph : ph + size[0], pw : pw + size[1]].swapaxes(0, 1)


def _rows(x, row):
    """(n, C, H, W) -> (1, C, n * H * row), laid out as columns are, with zeros where those mean nothing."""
    n, c, h, w = x.shape
    if row is None:
        return x.reshape(n, c, h * w)
    rows = xp(x).zeros((c, n, h, row), x.dtype)
    rows[..., :w] = x.swapaxes(0, 1)
    return rows.reshape(1, c, n * h * row)


def _images(rows, shape, row):
    """The inverse of ``_rows``: to (n, C, H, W) = ``shape``."""
    n, c, h, w = shape
    return rows.reshape(shape) if row is None else rows.reshape(c, n, h, row)[..., :w].swapaxes(0, 1)


def _matrix(w, taps):
    """(out, in, kh, kw) -> (out, taps * in)"""
    return xp(w).stack([w[:, :, i, j] for i, j in taps], axis=1).reshape(w.shape[0], -1)


def _chunks(n, numbers):
    """Slices of the batch with about CHUNK numbers in them."""
    step = max(1, CHUNK // max(1, numbers))
    return (slice(start, start + step) for start in range(0, n, step))


def _correlate(x, out_size, geometry, matrix=None, b=None, g=None):
    """Each where asked for, from one set of columns: ``matrix cols(x) + b``, (n, out, P, Q), and
    ``cols(x) g^T``, (taps, C, channels of g)."""
    (n, c), (p, q), taps, m = x.shape[:2], out_size, geometry[-1], xp(x)
    y = None if matrix is None else m.empty((n, len(matrix), p, q), x.dtype)
    gw = None if g is None else m.zeros((len(taps) * c, g.shape[1]), x.dtype)
    for part in _chunks(n, len(taps) * c * p * q):
        cols, row = _columns(x[part], out_size, *geometry)
        if y is not None:
            product = m.matmul(matrix, cols)
            if b is not None:
                product += b[:, None]  # while it is in the cache
            y[part] = _images(product, y[part].shape, row)
        if g is not None:  # OpenBLAS multiplies tall by narrow up to 1.7 times faster than the other way around
            gw += m.matmul(cols, _rows(g[part], row).swapaxes(1, 2)).sum(0)
    return y, None if g is None else gw.reshape(len(taps), c, -1)


def _filters(parts, kernel_size, taps):
    """(taps, out, in) -> (out, in, kh, kw), zero where there is no tap."""
    w = xp(parts).zeros((*parts.shape[1:], *kernel_size), parts.dtype)
    for k, (i, j) in enumerate(taps):
        w[:, :, i, j] = parts[k]
    return w


def _turned(kernel_size, stride, padding, taps):
    """Geometry of the convolution that is the derivative in x, or None where it is none."""
    (kh, kw), (ph, pw) = kernel_size, padding
    if stride == (1, 1) and ph < kh and pw < kw:
        return stride, (kh - 1 - ph, kw - 1 - pw), [(kh - 1 - i, kw - 1 - j) for i, j in taps]


def _transpose(g, w, b, size, geometry):
    (n, _, p, _), c, (stride, padding, taps), m = g.shape, w.shape[1], geometry, xp(g, w)
    if turned := _turned(w.shape[2:], *geometry):
        return _correlate(g, size, turned, _matrix(w.swapaxes(0, 1), taps), b)[0]
    matrix, row = _matrix(w, taps).T, _grid(size, stride, padding)[1]
    x = m.empty((n, c, *size), g.dtype)
    for part in _chunks(n, len(taps) * c * p * row):
        cols = m.matmul(matrix, _rows(g[part], row)).reshape(len(taps), c, -1, p * row)
        x[part] = _scattered(cols, size, *geometry)
    if b is not None:
        x += b[:, None, None]
    return x


# -- the three operations


class ConvOp(Op):
    def __init__(self, *geometry):
        self.geometry = geometry  # stride, padding, taps


class Conv2d(ConvOp):
    def forward(self, x, w, b=None):
        out_size = _out_size(x.shape[2:], w.shape[2:], *self.geometry)
        return _correlate(x, out_size, self.geometry, _matrix(w, self.geometry[-1]), b)[0]

    def backward(self, gy):
        x, w, *b = self.inputs
        turned = _turned(w.shape[2:], *self.geometry)
        if turned and x.requires_grad and w.requires_grad and not recording():
            # Both from the columns of gy: 0.7 of the time of one after the other.
            taps = self.geometry[-1]
            gx, gw = _correlate(gy.data, x.shape[2:], turned, _matrix(w.data.swapaxes(0, 1), taps), None, x.data)
            gx, gw = Tensor(gx), Tensor(_filters(gw, w.shape[2:], taps))
        else:
            gx = ConvTranspose2d(x.shape[2:], *self.geometry)(gy, w) if x.requires_grad else None
            gw = ConvFilterGrad(w.shape[2:], *self.geometry)(x, gy) if w.requires_grad else None
        return gx, gw, *(gy.sum((0, 2, 3)) for _ in b)


class ConvTranspose2d(ConvOp):
    def __init__(self, size, *geometry):
        super().__init__(*geometry)
        self.size = size  # of the result: several sizes lead to the same convolution output where the stride is not 1

    def forward(self, g, w, b=None):
        return _transpose(g, w, b, self.size, self.geometry)

    def backward(self, gx):
        g, w, *b = self.inputs
        if g.requires_grad and w.requires_grad and not recording():  # both from the columns of gx
            taps = self.geometry[-1]
            gg, gw = _correlate(gx.data, g.shape[2:], self.geometry, _matrix(w.data, taps), None, g.data)
            gg, gw = Tensor(gg), Tensor(_filters(gw.swapaxes(1, 2), w.shape[2:], taps))
        else:
            gg = Conv2d(*self.geometry)(gx, w) if g.requires_grad else None
            gw = ConvFilterGrad(w.shape[2:], *self.geometry)(gx, g) if w.requires_grad else None
        return gg, gw, *(gx.sum((0, 2, 3)) for _ in b)


class ConvFilterGrad(ConvOp):
    def __init__(self, kernel_size, *geometry):
        super().__init__(*geometry)
        self.kernel_size = kernel_size

    def forward(self, x, g):
        gw = _correlate(x, g.shape[2:], self.geometry, g=g)[1]
        return _filters(gw.swapaxes(1, 2), self.kernel_size, self.geometry[-1])

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
    return ConvTranspose2d(size, stride, padding, _taps(None, w.shape[2:]))(x, w, *([] if b is None else [b]))


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
