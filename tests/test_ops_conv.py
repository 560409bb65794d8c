"""Convolutions against nested loops over every index, and against each other."""

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, ops
from tinygen.backend import to_device


def conv_loops(x, w, stride, padding, b=None):
    """y[n, o, p, q] = b[o] + sum of w[o, c, i, j] x[n, c, p s - pad + i, q s - pad + j] over c, i, j inside x."""
    (n_, c_, h, width), (o_, _, kh, kw), (sh, sw), (ph, pw) = x.shape, w.shape, stride, padding
    y = np.zeros((n_, o_, (h + 2 * ph - kh) // sh + 1, (width + 2 * pw - kw) // sw + 1))
    for n, o, p, q in np.ndindex(y.shape):
        total = 0.0 if b is None else b[o]
        for c, i, j in np.ndindex(c_, kh, kw):
            row, column = p * sh - ph + i, q * sw - pw + j
            if 0 <= row < h and 0 <= column < width:
                total += w[o, c, i, j] * x[n, c, row, column]
        y[n, o, p, q] = total
    return y


def transpose_loops(x, w, stride, padding, extra=(0, 0), b=None):
    """Each x[n, c, p, q] adds its multiple of w[c, :, i, j] at (p s - pad + i, q s - pad + j)."""
    (n_, _, p_, q_), (_, o_, kh, kw), (sh, sw), (ph, pw) = x.shape, w.shape, stride, padding
    y = np.zeros((n_, o_, (p_ - 1) * sh - 2 * ph + kh + extra[0], (q_ - 1) * sw - 2 * pw + kw + extra[1]))
    for n, c, p, q in np.ndindex(x.shape):
        for o, i, j in np.ndindex(o_, kh, kw):
            row, column = p * sh - ph + i, q * sw - pw + j
            if 0 <= row < y.shape[2] and 0 <= column < y.shape[3]:
                y[n, o, row, column] += x[n, c, p, q] * w[c, o, i, j]
    return y if b is None else y + b[:, None, None]


def filter_loops(x, g, kernel, stride, padding):
    """The derivative of <conv(x, w), g> with respect to each weight."""
    w = np.zeros((g.shape[1], x.shape[1], *kernel))
    for n, o, p, q in np.ndindex(g.shape):
        for c, i, j in np.ndindex(w.shape[1:]):
            row, column = p * stride[0] - padding[0] + i, q * stride[1] - padding[1] + j
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                w[o, c, i, j] += g[n, o, p, q] * x[n, c, row, column]
    return w


GEOMETRIES = {  # image, kernel, stride, padding
    "3x3": ((4, 5), (3, 3), (1, 1), (1, 1)),
    "valid": ((5, 4), (3, 3), (1, 1), (0, 0)),
    "one pixel left": ((3, 2), (3, 2), (1, 1), (0, 0)),
    "1x1": ((3, 4), (1, 1), (1, 1), (0, 0)),
    "1x1 stride": ((5, 4), (1, 1), (2, 2), (0, 0)),
    "1x1 padded": ((2, 3), (1, 1), (1, 1), (1, 2)),
    "even": ((4, 5), (2, 4), (1, 1), (1, 2)),
    "stride 2": ((6, 5), (3, 3), (2, 2), (1, 1)),
    "stride above kernel": ((7, 5), (2, 1), (3, 2), (0, 0)),
    "all different": ((6, 7), (4, 3), (2, 3), (1, 2)),
    "row": ((3, 5), (1, 3), (1, 1), (0, 1)),
    "column": ((5, 3), (3, 1), (1, 1), (1, 0)),
    "padding above kernel": ((2, 2), (2, 2), (1, 1), (3, 3)),
    "rows unread": ((6, 6), (3, 3), (2, 2), (0, 0)),  # the last row and column meet no tap
}
each_geometry = pytest.mark.parametrize("size,kernel,stride,padding", GEOMETRIES.values(), ids=GEOMETRIES)


def out_size(size, kernel, stride, padding):
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding))


def unread(size, kernel, stride, padding):
    """The number of rows and columns at the end that no tap reaches: conv_transpose2d's output_padding."""
    return tuple((n + 2 * p - k) % s for n, k, s, p in zip(size, kernel, stride, padding))


def on(device, *arrays):
    return [Tensor(to_device(a, device), requires_grad=True) for a in arrays]


def agree(tensor, expected):
    assert tensor.shape == expected.shape
    np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-12, atol=1e-12)


@each_geometry
@pytest.mark.parametrize("bias", [False, True])
def test_conv2d(size, kernel, stride, padding, bias, rng, device):
    x, w = rng.standard_normal((2, 3, *size)), rng.standard_normal((2, 3, *kernel))
    b = rng.standard_normal(2) if bias else None
    y = ops.conv2d(*on(device, x, w, *([b] if bias else [])), stride=stride, padding=padding)
    agree(y, conv_loops(x, w, stride, padding, b))


@each_geometry
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose2d(size, kernel, stride, padding, bias, rng, device):
    extra = unread(size, kernel, stride, padding)
    x = rng.standard_normal((2, 3, *out_size(size, kernel, stride, padding)))
    w = rng.standard_normal((3, 2, *kernel))
    b = rng.standard_normal(2) if bias else None
    y = ops.conv_transpose2d(
        *on(device, x, w, *([b] if bias else [])), stride=stride, padding=padding, output_padding=extra
    )
    assert y.shape == (2, 2, *size)
    agree(y, transpose_loops(x, w, stride, padding, extra, b))


@each_geometry
def test_conv_filter_grad(size, kernel, stride, padding, rng, device):
    x, g = rng.standard_normal((2, 3, *size)), rng.standard_normal((2, 2, *out_size(size, kernel, stride, padding)))
    agree(ops.conv_filter_grad(*on(device, x, g), kernel, stride, padding), filter_loops(x, g, kernel, stride, padding))


@each_geometry
def test_the_three_are_adjoint(size, kernel, stride, padding, rng):
    """<conv(x, w), g> = <x, conv_transpose(g, w)> = <w, filter_grad(x, g)>."""
    x, w, g = (
        Tensor(rng.standard_normal(shape))
        for shape in ((2, 3, *size), (2, 3, *kernel), (2, 2, *out_size(size, kernel, stride, padding)))
    )
    extra = unread(size, kernel, stride, padding)
    one = (ops.conv2d(x, w, None, stride, padding) * g).sum().item()
    two = (ops.conv_transpose2d(g, w, None, stride, padding, extra) * x).sum().item()
    three = (ops.conv_filter_grad(x, g, kernel, stride, padding) * w).sum().item()
    assert one == pytest.approx(two, rel=1e-12) and one == pytest.approx(three, rel=1e-12)


@each_geometry
def test_derivatives(size, kernel, stride, padding, rng):
    small = out_size(size, kernel, stride, padding)
    x, w, b = rng.standard_normal((2, 2, *size)), rng.standard_normal((3, 2, *kernel)), rng.standard_normal(3)
    g, c = rng.standard_normal((2, 3, *small)), rng.standard_normal(2)
    extra = unread(size, kernel, stride, padding)
    gradcheck(lambda x, w, b: ops.conv2d(x, w, b, stride, padding), (x, w, b), rng=rng)
    gradcheck(lambda g, w, c: ops.conv_transpose2d(g, w, c, stride, padding, extra), (g, w, c), rng=rng)
    gradcheck(lambda x, g: ops.conv_filter_grad(x, g, kernel, stride, padding), (x, g), rng=rng)


@each_geometry
@pytest.mark.parametrize("blocks", [1, 3])
def test_first_derivatives(size, kernel, stride, padding, blocks, rng, device, monkeypatch):
    """Compare with the loops, with the columns of all images in one block or a block per image."""
    if blocks == 3:
        monkeypatch.setattr("tinygen.ops.conv.CHUNK", {"cpu": 1, "cuda": 1})
    small, extra = out_size(size, kernel, stride, padding), unread(size, kernel, stride, padding)
    x, w, b = rng.standard_normal((3, 2, *size)), rng.standard_normal((4, 2, *kernel)), rng.standard_normal(4)
    g, c = rng.standard_normal((3, 4, *small)), rng.standard_normal(2)
    y = ops.conv2d(*(xs := on(device, x, w, b)), stride, padding)
    agree(y, conv_loops(x, w, stride, padding, b))
    expected = transpose_loops(g, w, stride, padding, extra), filter_loops(x, g, kernel, stride, padding)
    for found, right in zip(grad(y, xs, to_device(g, device)), (*expected, g.sum((0, 2, 3))), strict=True):
        agree(found, right)
    y = ops.conv_transpose2d(*(gs := on(device, g, w, c)), stride, padding, extra)
    agree(y, transpose_loops(g, w, stride, padding, extra, c))
    expected = conv_loops(x, w, stride, padding), filter_loops(x, g, kernel, stride, padding)
    for found, right in zip(grad(y, gs, to_device(x, device)), (*expected, x.sum((0, 2, 3))), strict=True):
        agree(found, right)


def test_third_derivatives(rng):
    x, w = rng.standard_normal((1, 1, 3, 3)), rng.standard_normal((1, 1, 2, 2))
    gradcheck(lambda x, w: ops.tanh(ops.conv2d(x, w, padding=1, stride=2)), (x, w), order=3, rng=rng)


@pytest.mark.parametrize("constant", [0, 1])
def test_derivatives_where_one_input_is_constant(constant, rng, device):
    """The other input's gradient is the same as when both are computed."""
    x, w = rng.standard_normal((2, 2, 4, 4)), rng.standard_normal((2, 2, 3, 3))
    xs, ys = on(device, x, w), on(device, x, w)
    ys[constant].requires_grad = False
    both = grad((ops.conv2d(*xs) ** 2).sum(), xs)
    (one,) = grad((ops.conv2d(*ys) ** 2).sum(), ys[1 - constant])
    agree(one, both[1 - constant].numpy())


# -- masks


MASKS = {
    "causal": np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]]),
    "first": np.array([[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
    "last": np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1]]),
    "scattered": np.array([[0, 1, 0], [1, 0, 1], [0, 0, 1]]),
    "an empty column": np.array([[0, 1, 1], [0, 1, 0], [0, 0, 0]]),
    "all": np.ones((3, 3)),
}
each_mask = pytest.mark.parametrize("mask", [m.astype(bool) for m in MASKS.values()], ids=MASKS)


@each_mask
@pytest.mark.parametrize("stride,padding", [(1, 1), (2, 1), (1, 0)])
def test_a_mask_is_a_convolution_with_weights_at_zero(mask, stride, padding, rng, device):
    x, w, b = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    xs, zeroed = on(device, x, w, b), on(device, x, w * mask, b)
    y, z = ops.conv2d(*xs, stride, padding, mask), ops.conv2d(*zeroed, stride, padding)
    agree(y, z.numpy())
    agree(y, conv_loops(x, w * mask, (stride, stride), (padding, padding), b))
    gx, gw, gb = grad((y * y).sum(), xs)
    hx, hw, hb = grad((z * z).sum(), zeroed)
    agree(gx, hx.numpy())
    agree(gb, hb.numpy())
    assert (gw.numpy()[:, :, ~mask] == 0).all()
    agree(gw, hw.numpy() * mask)


@each_mask
def test_a_masked_filter_gradient(mask, rng, device):
    x, g = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 2, 5, 4))
    gw = ops.conv_filter_grad(*on(device, x, g), 3, padding=1, mask=mask)
    agree(gw, filter_loops(x, g, (3, 3), (1, 1), (1, 1)) * mask)
    assert (gw.numpy()[:, :, ~mask] == 0).all()


@each_mask
def test_masked_derivatives(mask, rng):
    x, w = rng.standard_normal((2, 1, 3, 4)), rng.standard_normal((2, 1, 3, 3))
    gradcheck(lambda x, w: ops.conv2d(x, w, padding=1, mask=mask), (x, w), rng=rng)
    g = rng.standard_normal((2, 2, 3, 4))
    gradcheck(lambda x, g: ops.conv_filter_grad(x, g, 3, padding=1, mask=mask), (x, g), rng=rng)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_forbidden_weights_are_never_read(poison, rng):
    """Zero times nan would be nan: that the result is finite shows that nothing was multiplied."""
    mask = MASKS["causal"].astype(bool)
    w = np.where(mask, rng.standard_normal((2, 1, 3, 3)), poison)
    xs = on("cpu", rng.standard_normal((1, 1, 4, 4)), w)
    y = ops.conv2d(*xs, padding=1, mask=mask)
    assert np.isfinite(y.data).all() and all(np.isfinite(g.data).all() for g in grad((y * y).sum(), xs))


def test_masks_for_other_kernels(rng):
    x, w = rng.standard_normal((2, 2, 5, 6)), rng.standard_normal((3, 2, 2, 4))
    mask = np.array([[1, 0, 1, 1], [0, 1, 0, 0]], bool)
    for given in mask, mask.tolist(), mask.astype(np.float32):
        agree(ops.conv2d(*on("cpu", x, w), padding=(1, 2), mask=given), conv_loops(x, w * mask, (1, 1), (1, 2)))


# -- sizes and layouts


def test_a_batch_is_its_images(rng):
    """Large enough that kernels which work on blocks of the batch use several, the last one shorter."""
    x, w = rng.standard_normal((7, 8, 40, 40)), rng.standard_normal((4, 8, 3, 3))
    y = ops.conv2d(*on("cpu", x, w), padding=1)
    up = ops.conv_transpose2d(*on("cpu", y.data, w), padding=1)
    gw = ops.conv_filter_grad(*on("cpu", x, y.data), 3, padding=1)
    one_by_one = 0
    for n in range(7):
        agree(ops.conv2d(*on("cpu", x[n : n + 1], w), padding=1), y.numpy()[n : n + 1])
        agree(ops.conv_transpose2d(*on("cpu", y.data[n : n + 1], w), padding=1), up.numpy()[n : n + 1])
        one_by_one = one_by_one + ops.conv_filter_grad(*on("cpu", x[n : n + 1], y.data[n : n + 1]), 3, padding=1).data
    np.testing.assert_allclose(gw.numpy(), one_by_one, rtol=1e-10, atol=1e-8)


def test_no_images_with_a_stride(device):
    x, w = on(device, np.zeros((0, 2, 5, 4)), np.ones((3, 2, 3, 3)))
    y = ops.conv2d(x, w, stride=2, padding=1)
    assert y.shape == (0, 3, 3, 2) and not grad(y.sum(), w)[0].numpy().any()
    assert ops.conv_transpose2d(y, w, None, 2, 1, (0, 1)).shape == (0, 2, 5, 4)


@pytest.mark.parametrize("n,c,o", [(0, 2, 3), (1, 1, 1), (5, 1, 3), (1, 7, 1), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_batches_and_channels(n, c, o, stride, rng, device):
    """Batches and channels may have any size, zero included."""
    x, w, b = rng.standard_normal((n, c, 5, 3)), rng.standard_normal((o, c, 3, 3)), rng.standard_normal(o)
    xs = on(device, x, w, b)
    y = ops.conv2d(*xs, padding=1, stride=stride)
    agree(y, conv_loops(x, w, (stride, stride), (1, 1), b))
    gx, gw, gb = grad(y.sum(), xs)
    agree(gx, transpose_loops(np.ones(y.shape), w, (stride, stride), (1, 1)))
    agree(gw, filter_loops(x, np.ones(y.shape), (3, 3), (stride, stride), (1, 1)))
    agree(gb, np.full(o, y.size / max(1, o)))
    assert ops.conv_transpose2d(*on(device, np.ones((n, o, 2, 2)), w), stride=2).shape == (n, c, 5, 5)


def test_arrays_in_any_memory_order(rng, device):
    """Transposed, reversed and broadcast views give the same results as copies."""
    x, w = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 3, 3))
    moved = Tensor(to_device(x, device))
    views = x.swapaxes(2, 3), x[:, ::-1], x[::-1, :, ::2], np.broadcast_to(x[:1], x.shape), np.asfortranarray(x)
    for view in views:
        for tensor in Tensor(to_device(np.ascontiguousarray(view), device)), Tensor(to_device(view, device)):
            agree(ops.conv2d(tensor, *on(device, w), padding=1), conv_loops(view, w, (1, 1), (1, 1)))
    agree(ops.conv2d(moved.transpose(0, 1, 3, 2), *on(device, w)), conv_loops(x.swapaxes(2, 3), w, (1, 1), (0, 0)))
    flipped = Tensor(to_device(w[:, :, ::-1, ::-1], device))
    agree(ops.conv2d(moved, flipped), conv_loops(x, w[:, :, ::-1, ::-1], (1, 1), (0, 0)))


def test_inputs_are_left_alone(rng):
    arrays = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 3, 3, 3)), rng.standard_normal(2)
    before = [a.copy() for a in arrays]
    xs = on("cpu", *arrays)
    y = ops.conv2d(*xs, padding=1)
    kept = y.numpy().copy()
    grad((y * y).sum(), xs)
    assert all(np.array_equal(a, b) for a, b in zip((*arrays, y.data), (*before, kept)))


def test_one_number_is_both_directions(rng):
    x, w = on("cpu", rng.standard_normal((1, 2, 6, 6)), rng.standard_normal((2, 2, 3, 3)))
    agree(ops.conv2d(x, w, None, 2, 1), ops.conv2d(x, w, None, (2, 2), [1, 1]).numpy())
    agree(ops.conv2d(x, w, None, np.int64(2), np.int64(1)), ops.conv2d(x, w, None, 2, 1).numpy())
    agree(ops.conv_transpose2d(x, w, None, 2, 1, 1), ops.conv_transpose2d(x, w, None, (2, 2), (1, 1), (1, 1)).numpy())


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_output_padding_chooses_among_the_sizes_that_lead_back(extra, rng):
    """Where the kernel does not reach the additional row, the row gets only the bias."""
    x, w, b = rng.standard_normal((1, 1, 3, 2)), rng.standard_normal((1, 2, 2, 2)), rng.standard_normal(2)
    y = ops.conv_transpose2d(*on("cpu", x, w, b), stride=2, output_padding=extra)
    assert y.shape == (1, 2, 6 + extra[0], 4 + extra[1])
    assert ops.conv2d(y, Tensor(np.ones((1, 2, 2, 2))), stride=2).shape == x.shape
    if extra[0]:
        agree(y[0, :, -1], np.repeat(b[:, None], y.shape[3], 1))


def test_plain_arrays_are_taken_as_constants(rng):
    x, w = rng.standard_normal((1, 1, 3, 3)), rng.standard_normal((1, 1, 2, 2))
    assert np.array_equal(ops.conv2d(x, w).data, ops.conv2d(*on("cpu", x, w)).data)
    assert not ops.conv2d(x, w).requires_grad


# -- what is refused, and how


def tensor(*shape, dtype=np.float32):
    return Tensor(np.ones(shape, dtype))


X, W, G = tensor(2, 3, 5, 5), tensor(4, 3, 3, 3), tensor(2, 4, 3, 3)
REFUSED = {
    "channels": (lambda: ops.conv2d(X, tensor(4, 2, 3, 3)), r"conv2d: x has 3 channels, w expects 2 .*\(2, 3, 5, 5\)"),
    "axes of x": (
        lambda: ops.conv2d(tensor(3, 5, 5), W),
        r"conv2d: x has shape \(3, 5, 5\)",
    ),
    "axes of w": (lambda: ops.conv2d(X, tensor(3, 3)), r"conv2d: w has shape \(3, 3\)"),
    "kernel": (lambda: ops.conv2d(X, tensor(4, 3, 6, 3)), r"images \(5, 5\).*smaller than the kernel \(6, 3\)"),
    "kernel width": (
        lambda: ops.conv2d(X, tensor(4, 3, 3, 8), padding=1),
        r"padding \(1, 1\).*smaller than the kernel \(3, 8\)",
    ),
    "bias": (lambda: ops.conv2d(X, W, tensor(3)), r"conv2d: b has shape \(3,\)"),
    "stride 0": (lambda: ops.conv2d(X, W, stride=0), r"stride.*0.*each at least 1"),
    "stride pair": (lambda: ops.conv2d(X, W, stride=(1, 0)), r"stride.*\(1, 0\)"),
    "stride triple": (
        lambda: ops.conv2d(X, W, stride=(1, 1, 1)),
        r"stride.*\(1, 1, 1\).*a whole number or \(vertical, horizontal\)",
    ),
    "padding": (lambda: ops.conv2d(X, W, padding=-1), r"padding.*-1.*at least 0"),
    "mask": (lambda: ops.conv2d(X, W, mask=np.ones((2, 3))), r"mask.*\(2, 3\).*\(3, 3\)"),
    "mask of weights": (lambda: ops.conv2d(X, W, mask=np.ones(W.shape)), r"mask.*\(4, 3, 3, 3\).*\(3, 3\)"),
    "empty mask": (lambda: ops.conv2d(X, W, mask=np.zeros((3, 3))), r"mask.*keeps 0 taps"),
    "up channels": (lambda: ops.conv_transpose2d(G, tensor(3, 4, 3, 3)), r"conv_transpose2d: x has 4 channels, w .* 3"),
    "up axes": (lambda: ops.conv_transpose2d(G[0], W), r"conv_transpose2d: x has shape \(4, 3, 3\)"),
    "up bias": (lambda: ops.conv_transpose2d(G, W, tensor(4)), r"conv_transpose2d: b has shape \(4,\)"),
    "output padding": (
        lambda: ops.conv_transpose2d(G, W, stride=2, output_padding=2),
        r"conv_transpose2d: output_padding \(2, 2\)",
    ),
    "output padding -": (
        lambda: ops.conv_transpose2d(G, W, stride=2, output_padding=-1),
        r"output_padding.*-1.*at least 0",
    ),
    "up padding": (lambda: ops.conv_transpose2d(G, W, padding=3), r"conv_transpose2d: .*padding \(3, 3\).*\(-1, -1\)"),
    "filter images": (lambda: ops.conv_filter_grad(X, G[:1], 3), r"conv_filter_grad: gy is \(1, 4"),
    "filter size": (lambda: ops.conv_filter_grad(X, G, 2), r"conv_filter_grad: gy .*needs \(2, 'out', 4, 4\)"),
    "filter axes": (lambda: ops.conv_filter_grad(X, G[0], 3), r"conv_filter_grad: gy has shape \(4, 3, 3\)"),
    "filter axes of x": (lambda: ops.conv_filter_grad(X[0], G, 3), r"conv_filter_grad: x has shape \(3, 5, 5\)"),
    "filter kernel": (lambda: ops.conv_filter_grad(X, G, 0), r"kernel_size.*0.*at least 1"),
    "filter mask": (lambda: ops.conv_filter_grad(X, G, 3, mask=np.ones((2, 2))), r"mask.*\(2, 2\).*\(3, 3\)"),
}


@pytest.mark.parametrize("call,message", REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_what_it_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_dtypes_must_agree(dtype):
    for operation, x, w in (ops.conv2d, X, W), (ops.conv_transpose2d, G, W):
        with pytest.raises(TypeError, match=rf"{operation.__name__}: x .* float32 and w .* {np.dtype(dtype)} need one"):
            operation(x, Tensor(w.data.astype(dtype)))
    with pytest.raises(TypeError, match=r"conv2d: x .* int64 and w .* int64 need one floating dtype"):
        ops.conv2d(Tensor(X.data.astype(np.int64)), Tensor(W.data.astype(np.int64)))


@pytest.mark.parametrize(
    "padding,kernel,size", [(3, 3, 4), ((0, 3), (1, 3), 4), (2, 7, 3), ((2, 2), (2, 5), 1), (3, 7, 1)]
)
def test_paddings_as_wide_as_the_kernel_and_kernels_as_wide_as_the_image(padding, kernel, size, rng):
    """Compare with an image padded by hand."""
    kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
    pads = (padding, padding) if isinstance(padding, int) else padding
    x, w = rng.standard_normal((2, 3, size, size)), rng.standard_normal((4, 3, *kernel))
    by_hand = np.pad(x, ((0, 0), (0, 0), (pads[0],) * 2, (pads[1],) * 2))
    y = ops.conv2d(Tensor(x), Tensor(w), padding=padding)
    np.testing.assert_allclose(y.data, ops.conv2d(Tensor(by_hand), Tensor(w), stride=1).data, atol=1e-12)
    windows = np.lib.stride_tricks.sliding_window_view(by_hand, kernel, (2, 3))
    np.testing.assert_allclose(y.data, np.einsum("ncpqij,ocij->nopq", windows, w), atol=1e-12)
    gradcheck(lambda x, w: ops.conv2d(x, w, padding=padding), (x, w))


def test_the_bias_has_the_dtype_of_the_weights():
    x, w = np.zeros((1, 2, 3, 3), np.float32), np.zeros((2, 2, 3, 3), np.float32)
    for convolution in (ops.conv2d, ops.conv_transpose2d):
        with pytest.raises(ValueError, match=r"b is \(2,\) float64, needs \(2,\) float32"):
            convolution(x, w, np.zeros(2))
