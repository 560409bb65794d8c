"""Elementwise, reducing and moving operations, matrix products and losses; and what holds for every operation.

``CASES`` lists each operation with a NumPy reference and inputs away from kinks. What every operation owes (values on
each device, derivatives to order 2, float32 in and out, no transfers, no reference cycles) is tested once for them all.
"""

import gc
import inspect
import math
import weakref

import numpy as np
import pytest

from tinygen import Tensor, grad, gradcheck, ops
from tinygen.backend import to_device, to_host

draw = np.random.default_rng(1)


def away(*shape):
    """Values of size 0.3 to 0.8 or 1.2 to 1.7: not near 0, 1 or -1, where some operations have kinks."""
    size = draw.uniform(0.3, 0.8, shape) + 0.9 * draw.integers(0, 2, shape)
    return np.asarray(size * draw.choice([-1, 1], shape))


def positive(*shape):
    return np.asarray(draw.uniform(0.5, 2, shape))


def distinct(*shape):
    """All values at least 0.1 apart."""
    return (draw.permutation(int(np.prod(shape))).reshape(shape) - 2) * 0.1


CASES = {}  # name: (operation, reference, inputs)


def case(name, operation, reference, *inputs):
    assert name not in CASES
    CASES[name] = operation, reference, inputs


for shape in (2, 3), (), (0, 3):
    for name, operation, reference, values in [
        ("neg", ops.neg, np.negative, away),
        ("operator -x", lambda x: -x, np.negative, away),
        ("exp", ops.exp, np.exp, away),
        ("log", ops.log, np.log, positive),
        ("log1p", ops.log1p, np.log1p, positive),
        ("expm1", ops.expm1, np.expm1, away),
        ("sqrt", ops.sqrt, np.sqrt, positive),
        ("abs", ops.abs, np.abs, away),
        ("sin", ops.sin, np.sin, away),
        ("cos", ops.cos, np.cos, away),
        ("erf", ops.erf, lambda x: np.vectorize(math.erf, otypes=[float])(x), away),
        ("tanh", ops.tanh, np.tanh, away),
        ("sigmoid", ops.sigmoid, lambda x: 1 / (1 + np.exp(-x)), away),
        ("softplus", ops.softplus, lambda x: np.logaddexp(0, x), away),
        ("relu", ops.relu, lambda x: np.maximum(x, 0), away),
        ("leaky_relu", lambda x: ops.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x), away),
        ("elu", ops.elu, lambda x: np.where(x > 0, x, np.expm1(x)), away),
        ("clip", lambda x: ops.clip(x, -1, 1), lambda x: np.clip(x, -1, 1), away),
        ("astype", lambda x: ops.astype(x, x.dtype), lambda x: x, away),
        ("x ** 3", lambda x: x**3, lambda x: x**3, away),
        ("x ** -2", lambda x: x**-2.0, lambda x: x**-2.0, away),
        ("2 ** x", lambda x: 2**x, lambda x: 2**x, away),
        ("with numbers", lambda x: (1 - 2 * x) / 3 + 5 / (x + 3.5), lambda x: (1 - 2 * x) / 3 + 5 / (x + 3.5), away),
        ("where number", lambda x: ops.where(x.data > 0, x, -2.0), lambda x: np.where(x > 0, x, -2.0), away),
        ("sum", ops.sum, np.sum, away),
        ("mean", lambda x: ops.mean(x, -1), lambda x: x.mean(-1), away),
        ("reshape", lambda x: ops.reshape(x, -1, 1), lambda x: x.reshape(x.size, 1), away),
        ("transpose", ops.transpose, np.transpose, away),
        ("squeeze", ops.squeeze, np.squeeze, away),
        ("expand_dims", lambda x: ops.expand_dims(x, -1), lambda x: np.expand_dims(x, -1), away),
        ("repeat", lambda x: ops.repeat(x, 3), lambda x: np.repeat(x, 3), away),
        ("prod", ops.prod, np.prod, away),
        ("cumsum", ops.cumsum, np.cumsum, away),
        ("x twice", lambda x: ops.broadcast_to(x, (2, *x.shape)), lambda x: np.broadcast_to(x, (2, *x.shape)), away),
    ]:
        if name in ("mean", "reshape") and shape == ():
            continue
        case(f"{name} {shape}", operation, reference, values(*shape))

PAIRS = [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3)), ((2, 3), ()), ((), ()), ((0, 3), (3,))]
for one, other in PAIRS:
    for name, operation, reference, values in [
        ("add", ops.add, np.add, away),
        ("sub", ops.sub, np.subtract, away),
        ("mul", ops.mul, np.multiply, away),
        ("div", ops.div, np.divide, away),
        ("pow", ops.pow, np.power, positive),
        ("operators", lambda x, y: (x + y) * (x - y) / y**2, lambda x, y: (x + y) * (x - y) / y**2, away),
        ("bce", ops.bce_with_logits, lambda x, t: np.logaddexp(0, x) - x * t, away),
        ("minimum", ops.minimum, np.minimum, None),
        ("where", lambda x, y: ops.where(ops.sub(x, y).data > 0, x, y), lambda x, y: np.where(x > y, x, y), None),
        ("maximum", ops.maximum, np.maximum, None),
    ]:
        if name == "bce" and (one, other) == ((2, 1), (1, 3)):  # is refused
            continue
        if values is None:  # no ties: the second is shifted by half the spacing
            inputs = distinct(*one), distinct(*other) + 0.05
        else:
            inputs = values(*one), values(*other)
        case(f"{name} {one} {other}", operation, reference, *inputs)

for shape, axes in [((2, 3, 4), (None, 1, -1, (0, 2), (-1, 0), (0, 1, 2), ())), ((3,), (0,)), ((), (None, ()))]:
    for axis in axes:
        for keepdims in False, True:
            how = dict(axis=axis, keepdims=keepdims)
            for name, operation, reference in [
                ("sum", ops.sum, np.sum),
                ("mean", ops.mean, np.mean),
                ("var", ops.var, np.var),
                ("std", ops.std, np.std),
                ("max", ops.max, np.max),
                ("min", ops.min, np.min),
                ("prod", ops.prod, np.prod),
                ("logsumexp", ops.logsumexp, lambda x, **how: np.log(np.exp(x).sum(**how))),
            ]:
                case(
                    f"{name} {shape} axis {axis}{' kept' * keepdims}",
                    lambda x, operation=operation, how=how: operation(x, **how),
                    lambda x, reference=reference, how=how: reference(x, **how),
                    distinct(*shape),
                )
for axis in -1, 0, (0, 2), None:
    for name, operation, reference in [
        ("softmax", ops.softmax, lambda x, axis: np.exp(x) / np.exp(x).sum(axis, keepdims=True)),
        ("log_softmax", ops.log_softmax, lambda x, axis: x - np.log(np.exp(x).sum(axis, keepdims=True))),
    ]:
        case(
            f"{name} axis {axis}",
            lambda x, operation=operation, axis=axis: operation(x, axis),
            lambda x, reference=reference, axis=axis: reference(x, axis),
            away(2, 3, 4),
        )


def skewed(x):
    """Skew row by row, as in the paper's figure."""
    h, w = x.shape[-2:]
    y = np.zeros((*x.shape[:-2], h, w + h - 1), x.dtype)
    for r in range(h):
        for c in range(w):
            y[..., r, r + c] = x[..., r, c]
    return y


def unskewed(y):
    h, w = y.shape[-2], y.shape[-1] - y.shape[-2] + 1
    return np.stack([y[..., r, r : r + w] for r in range(h)], axis=-2)


case("reshape", lambda x: x.reshape(4, 1, -1), lambda x: x.reshape(4, 1, 6), away(2, 3, 4))
case("reshape tuple", lambda x: x.reshape((6, 4)), lambda x: x.reshape(6, 4), away(2, 3, 4))
case("reshape to a number", lambda x: x.reshape(()), lambda x: x.reshape(()), away(1, 1))
case("transpose 120", lambda x: x.transpose(1, 2, 0), lambda x: x.transpose(1, 2, 0), away(2, 3, 4))
case("transpose -", lambda x: ops.transpose(x, (0, -1, 1)), lambda x: x.transpose(0, 2, 1), away(2, 3, 4))
case("T", lambda x: x.T, lambda x: x.T, away(2, 3, 4))
case("broadcast_to", lambda x: ops.broadcast_to(x, (5, 2, 3)), lambda x: np.broadcast_to(x, (5, 2, 3)), away(2, 1))
case("sum_to", lambda x: ops.sum_to(x, (3, 1)), lambda x: x.sum((0, 3))[0][:, None], away(2, 1, 3, 4))
case("concatenate", lambda *xs: ops.concatenate(xs, -2), lambda *xs: np.concatenate(xs, -2), away(1, 2), away(3, 2))
case("concatenate empty", lambda *xs: ops.concatenate(xs), lambda *xs: np.concatenate(xs), away(0, 2), away(3, 2))
case("stack", lambda *xs: ops.stack(xs, 1), lambda *xs: np.stack(xs, 1), away(2, 3), away(2, 3), away(2, 3))
case("stack last", lambda *xs: ops.stack(xs, -1), lambda *xs: np.stack(xs, -1), away(2), away(2))
case("stack numbers", lambda *xs: ops.stack(xs), lambda *xs: np.stack(xs), away(), away())
case("stack one twice", lambda x: ops.stack([x, x]), lambda x: np.stack([x, x]), away(2, 3))
case("split equal", lambda x: ops.split(x, 3, 1), lambda x: np.split(x, 3, 1), away(2, 6))
case("split at", lambda x: ops.split(x, [1, 1, 4], -1), lambda x: np.split(x, [1, 1, 4], -1), away(2, 6))
case("pad", lambda x: ops.pad(x, [(0, 2), (1, 0)]), lambda x: np.pad(x, [(0, 2), (1, 0)]), away(2, 3))
case("flip", lambda x: ops.flip(x, -1), lambda x: np.flip(x, -1), away(2, 3))
case("flip two", lambda x: ops.flip(x, (0, 2)), lambda x: np.flip(x, (0, 2)), away(2, 3, 4))
case("pad value", lambda x: ops.pad(x, [(1, 2)], -5), lambda x: np.pad(x, [(1, 2)], constant_values=-5), away(3))
case("squeeze axis", lambda x: ops.squeeze(x, -2), lambda x: np.squeeze(x, -2), away(1, 2, 1, 3))
case("squeeze axes", lambda x: ops.squeeze(x, (0, 2)), lambda x: np.squeeze(x, (0, 2)), away(1, 2, 1, 3))
case("expand_dims two", lambda x: ops.expand_dims(x, (0, 2)), lambda x: np.expand_dims(x, (0, 2)), away(2, 3))
for axis in 0, -1:
    case(f"repeat {axis}", lambda x, a=axis: ops.repeat(x, 3, a), lambda x, a=axis: np.repeat(x, 3, a), away(2, 3))
    case(f"cumsum {axis}", lambda x, a=axis: ops.cumsum(x, a), lambda x, a=axis: np.cumsum(x, a), away(4, 3))
case("repeat 0 times", lambda x: ops.repeat(x, 0, 1), lambda x: np.repeat(x, 0, 1), away(2, 3))
case(
    "prod with zeros",
    lambda x: ops.prod(x, 1),
    lambda x: np.prod(x, 1),
    away(4, 5) * (np.arange(5) > [[-1], [0], [1], [4]]),
)

for shape in (3, 5), (5, 3), (1, 4), (4, 1), (2, 3, 4):
    case(f"skew {shape}", ops.skew, skewed, away(*shape))
    case(f"unskew {shape}", ops.unskew, unskewed, away(*shape[:-1], shape[-1] + shape[-2] - 1))
case("skew axes", lambda x: ops.skew(x, 0, 2), lambda x: np.moveaxis(skewed(np.moveaxis(x, 1, 0)), 0, 1), away(3, 2, 4))

SLICES = {
    "[1]": 1,
    "[-1, 0]": (-1, 0),
    "[::-1, 1:]": (slice(None, None, -1), slice(1, None)),
    "[..., ::2]": (..., slice(None, None, 2)),
    "[:, None]": (slice(None), None),
    "[3:]": slice(3, None),  # empty
    "[()]": (),
    "[NumPy integer]": (np.int64(1), slice(None), np.int64(2)),
}
for name, index in SLICES.items():
    case(f"x{name}", lambda x, index=index: x[index], lambda x, index=index: x[index], away(2, 3, 4))

for one, other in [
    ((2, 3), (3, 4)),
    ((3,), (3,)),
    ((3,), (3, 4)),
    ((2, 3), (3,)),
    ((5, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (3, 4)),
    ((2, 3), (5, 3, 4)),
    ((5, 1, 2, 3), (6, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((3,), (5, 3, 4)),
    ((5, 2, 3), (3,)),
    ((2, 0), (0, 3)),
    ((0, 2), (2, 3)),
]:
    case(f"matmul {one} {other}", ops.matmul, np.matmul, away(*one), away(*other))
case("x @ x.T", lambda x: x @ x.T, lambda x: x @ x.T, away(2, 3))

for subscripts, *shapes in [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("ba,bc", (2, 3), (2, 4)),  # the result in the order of the alphabet
    ("bij, bjk -> bki", (5, 2, 3), (5, 3, 4)),
    ("ij->ji", (2, 3)),
    ("ij->i", (2, 3)),
    ("ij->", (2, 3)),
    ("ij,kl->il", (2, 3), (4, 2)),  # j and k occur in one operand only
    ("i,i,i->i", (3,), (3,), (3,)),
    ("ij,jk,kl->li", (2, 3), (3, 4), (4, 2)),
    (",ij->ij", (), (2, 3)),
    ("ij,ij->ij", (2, 1), (1, 3)),  # size 1 is broadcast
    ("ij,ij->i", (2, 1), (2, 3)),
    ("ij,ij->i", (2, 1), (2, 1)),
    ("...ij,...jk->...ik", (5, 1, 2, 3), (6, 3, 4)),
    ("i...,i", (3, 2, 4), (3,)),
    ("...->...", (2, 3)),
    ("...i->...", (2, 3)),
    ("i...,...i->i...", (3, 2), (4, 2, 3)),
    ("nic,ioc->no", (2, 3, 2), (3, 4, 2)),
    ("ij,jk->ik", (2, 0), (0, 3)),
    ("ij,jk->ik", (0, 2), (2, 3)),
]:
    case(
        f"einsum {subscripts} {shapes}",
        lambda *xs, subscripts=subscripts: ops.einsum(subscripts, *xs),
        lambda *xs, subscripts=subscripts: np.einsum(subscripts, *xs),
        *(away(*shape) for shape in shapes),
    )
case("einsum of one twice", lambda x: ops.einsum("ij,kj->ik", x, x), lambda x: x @ x.T, away(2, 3))


def well_conditioned(*shape):
    return away(*shape) + 4 * np.eye(shape[-1]) * np.where(np.arange(shape[-1]) % 3, 1, -1)


for shape in (3, 3), (2, 4, 4), (2, 1, 2, 2), (1, 1), (0, 3, 3):
    case(f"inverse {shape}", ops.inverse, np.linalg.inv, well_conditioned(*shape))
    case(f"slogdet {shape}", lambda x: ops.slogdet(x)[1], lambda x: np.linalg.slogdet(x)[1], well_conditioned(*shape))


def pooled(reduce, x, size, stride, padding, value):
    """Pool window by window."""
    widths = [(0, 0)] * (x.ndim - 2) + [(p, p) for p in padding]
    x = np.pad(x, widths, constant_values=value)
    rows, columns = (range(0, n - k + 1, s) for n, k, s in zip(x.shape[-2:], size, stride))
    windows = [[x[..., r : r + size[0], c : c + size[1]] for c in columns] for r in rows]
    return np.stack([np.stack([reduce(w, axis=(-2, -1)) for w in row], -1) for row in windows], -2)


for shape, size, stride, padding in [
    ((2, 3, 4, 6), (2, 2), (2, 2), (0, 0)),
    ((1, 2, 5, 4), (3, 2), (1, 2), (0, 0)),
    ((1, 2, 5, 6), (3, 3), (2, 2), (1, 1)),
    ((1, 1, 4, 7), (2, 4), (3, 1), (1, 2)),
    ((5, 5), (2, 2), (3, 3), (0, 0)),  # without channels, and with gaps
    ((0, 1, 4, 4), (2, 2), (2, 2), (0, 0)),
]:
    for name, operation, reduce, value in ("avg", ops.avg_pool2d, np.mean, 0), ("max", ops.max_pool2d, np.max, -np.inf):
        case(
            f"{name}_pool2d {shape} {size} {stride} {padding}",
            lambda x, operation=operation, how=(size, stride, padding): operation(x, *how),
            lambda x, reduce=reduce, how=(size, stride, padding, value): pooled(reduce, x, *how),
            distinct(*shape),
        )
case(
    "avg_pool2d default",
    lambda x: ops.avg_pool2d(x, 2),
    lambda x: pooled(np.mean, x, (2, 2), (2, 2), (0, 0), 0),
    away(1, 4, 5),
)
case(
    "avg_pool2d squared",  # so that the second derivative has to do with that of the first
    lambda x: ops.avg_pool2d(x, 2, 1) ** 2,
    lambda x: pooled(np.mean, x, (2, 2), (1, 1), (0, 0), 0) ** 2,
    away(3, 4),
)
case("cumsum squared", lambda x: ops.cumsum(x, 1) ** 2, lambda x: np.cumsum(x, 1) ** 2, away(2, 4))


def resized(x, size, mode):
    """Resize pixel by pixel: map its centre to x's coordinates, and weight the pixels around by their distance."""
    (h, w), y = x.shape[-2:], np.zeros((*x.shape[:-2], *size), x.dtype)
    for r, c in np.ndindex(*size):
        if mode == "nearest":
            y[..., r, c] = x[..., math.floor(r * h / size[0]), math.floor(c * w / size[1])]
            continue
        a, b = (max(0, (i + 0.5) * n / m - 0.5) for i, n, m in ((r, h, size[0]), (c, w, size[1])))
        for i, j in (0, 0), (0, 1), (1, 0), (1, 1):
            near = (a % 1 if i else 1 - a % 1) * (b % 1 if j else 1 - b % 1)
            y[..., r, c] += near * x[..., min(int(a) + i, h - 1), min(int(b) + j, w - 1)]
    return y


for mode in "nearest", "bilinear":
    for size in (4, 6), (5, 5), (1, 2), (2, 3), (7, 1):
        case(
            f"interpolate {mode} {size}",
            lambda x, size=size, mode=mode: ops.interpolate(x, size, mode),
            lambda x, size=size, mode=mode: resized(x, size, mode),
            away(2, 1, 2, 3),
        )

TAPS = np.array([[1, 1, 1], [1, 1, 0]], bool)
case("conv2d", lambda x, w, b: ops.conv2d(x, w, b, 2, 1), None, away(2, 3, 5, 4), away(2, 3, 3, 3), away(2))
case("conv2d mask", lambda x, w: ops.conv2d(x, w, mask=TAPS), None, away(2, 1, 3, 4), away(2, 1, 2, 3))
case("conv_filter_grad", lambda x, g: ops.conv_filter_grad(x, g, 2), None, away(2, 1, 3, 3), away(2, 2, 2, 2))
case(
    "conv_transpose2d",
    lambda x, w, b: ops.conv_transpose2d(x, w, b, 2, 1, 1),
    None,
    *(away(2, 2, 2, 3), away(2, 1, 3, 3), away(1)),
)


def nade(x, w, v, b, c):
    before = np.cumsum(x[:, :, None] * w, 1) - x[:, :, None] * w  # (N, D, H): the sum over earlier values
    return ((1 / (1 + np.exp(-c - before)))[:, :, None] * v).sum(3) + b


case("nade_logits", ops.nade_logits, nade, away(2, 3), away(3, 4), away(3, 2, 4), away(3, 2), away(4))


def attend(q, k, v):
    w = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])) * np.tri(q.shape[1])
    return w @ v / w.sum(-1, keepdims=True)


case(
    "attention",
    lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, True),
    attend,
    *(away(2, 3, 2), away(2, 3, 2), away(2, 3, 1)),
)
case(
    "lstm_scan",
    lambda gates, w, h, c: ops.lstm_scan(gates, w, h, c, (-1, 0)),
    None,
    *(away(2, 8, 3, 2), away(8, 2, 2), away(2, 3, 2), away(2, 3, 2)),
)

LABELS = np.array([[2, 0], [1, 1], [0, 3]])


def cross_entropy(x):
    """From the definition: -log of the label's softmax probability, one label at a time."""
    shares = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    return np.array([[-np.log(shares[n, LABELS[n, i], i]) for i in range(2)] for n in range(3)])


def on(x, *arrays):
    """The arrays on x's device, moved there once, as a user would do beforehand."""
    for a in arrays:
        if (id(a), x.device) not in moved:
            moved[id(a), x.device] = to_device(a, x.device)
    return [moved[id(a), x.device] for a in arrays]


moved = {}
case("cross entropy", lambda x: ops.softmax_cross_entropy(x, on(x, LABELS)[0]), cross_entropy, away(3, 4, 2))
case(
    "cross entropy last axis",
    lambda x: ops.softmax_cross_entropy(x, on(x, LABELS)[0], axis=-1),
    lambda x: cross_entropy(x.transpose(0, 2, 1)),
    away(3, 2, 4),
)
GATHERS = {
    "repeated": np.array([0, 2, 0, 0]),
    "negative": np.array([[1, -1], [-2, 1]]),
    "empty": np.array([], int),
}
for name, index in GATHERS.items():
    case(f"gather {name}", lambda x, i=index: x[on(x, i)[0]], lambda x, i=index: x[i], away(3, 2))
    case(f"gather {name} axis 1", lambda x, i=index: x[:, on(x, i)[0]], lambda x, i=index: x[:, i], away(2, 3))
PAIR = np.array([0, 1, 0]), np.array([2, 2, 2])
case("gather pairs", lambda x: x[tuple(on(x, *PAIR))], lambda x: x[PAIR], away(2, 3))


every_case = pytest.mark.parametrize("name", CASES)
with_reference = pytest.mark.parametrize("name", [name for name, (_, reference, _) in CASES.items() if reference])


def outputs_of(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def tensors(name, dtype=np.float64, device="cpu"):
    return [Tensor(to_device(x.astype(dtype), device), requires_grad=True) for x in CASES[name][2]]


@pytest.fixture(autouse=True)
def forget_moved():
    moved.clear()


@with_reference
def test_values_are_numpys(name, device):
    operation, reference, inputs = CASES[name]
    got, expected = outputs_of(operation(*tensors(name, device=device))), outputs_of(reference(*inputs))
    assert len(got) == len(expected)
    for y, e in zip(got, expected):
        assert y.shape == e.shape and y.device == device
        np.testing.assert_allclose(y.numpy(), e, rtol=1e-12, atol=1e-14)


@every_case
def test_derivatives(name, rng):
    operation, _, inputs = CASES[name]
    gradcheck(operation, inputs, order=2, rng=rng)


@every_case
def test_derivatives_without_and_with_graph_agree(name, rng, device):
    """gradcheck records; without recording, other code may run (fused derivatives, sums in place)."""
    xs = tensors(name, device=device)
    ys = outputs_of(CASES[name][0](*xs))
    vs = [to_device(np.asarray(rng.standard_normal(y.shape)), device) for y in ys]
    plain, recorded = (grad(ys, xs, vs, create_graph=record) for record in (False, True))
    for x, g, h in zip(xs, plain, recorded):
        assert g.shape == x.shape and g.device == x.device and not g.requires_grad
        np.testing.assert_allclose(g.numpy(), h.numpy(), rtol=1e-10, atol=1e-12)


@every_case
def test_float32_stays_float32(name, device):
    xs = tensors(name, np.float32, device)
    ys = outputs_of(CASES[name][0](*xs))
    assert {y.dtype for y in ys} == {np.dtype(np.float32)}
    first = grad([(y * y).sum() for y in ys], xs, create_graph=True)
    second = grad([(g * g).sum() + (x * 0).sum() for g, x in zip(first, xs)], xs)
    assert {g.dtype for g in (*first, *second)} == {np.dtype(np.float32)}


@every_case
def test_nothing_is_copied_from_the_device_or_waited_for(name, strict):
    xs = tensors(name, np.float32, "cuda")
    CASES[name][0](*xs)  # labels and indices move here
    strict.count.clear()
    ys = outputs_of(CASES[name][0](*xs))
    first = grad([(y * y).sum() for y in ys], xs, create_graph=True)
    grad([(g * g).sum() + (x * 0).sum() for g, x in zip(first, xs)], xs)
    assert not +strict.count


@every_case
def test_a_graph_dies_without_the_garbage_collector(name):
    xs = tensors(name)
    gc.disable()
    try:
        ys = outputs_of(CASES[name][0](*xs))
        first = grad([(y * y).sum() for y in ys], xs, create_graph=True)
        graphs = [weakref.ref(y._op) for y in ys if y._op] + [weakref.ref(g._op) for g in first if g._op]
        assert graphs
        del ys, first
        assert [ref() for ref in graphs if ref() not in {x._op for x in xs}] == []
    finally:
        gc.enable()


def test_every_operation_is_in_the_table():
    code = inspect.getsource(inspect.getmodule(test_every_operation_is_in_the_table))
    elsewhere = {"dropout", "getitem", "lstm_loop", "to"}
    names = {name for name, value in vars(ops).items() if callable(value) and name.islower() and name[0] != "_"}
    assert len(names) > 50
    assert [name for name in sorted(names - elsewhere) if f"ops.{name}" not in code] == []


# -- numbers and dtypes


OPERATORS = {
    "+": lambda x, y: x + y,
    "-": lambda x, y: x - y,
    "*": lambda x, y: x * y,
    "/": lambda x, y: x / y,
    "**": lambda x, y: x**y,
}


@pytest.mark.parametrize("shape", [(2, 3), ()])
@pytest.mark.parametrize("number", [2, 2.0, True, np.float64(2), np.int64(2), np.float32(2), np.array(2.0)], ids=repr)
@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_number_takes_the_tensors_dtype(operator, number, shape, device):
    x = Tensor(to_device(np.full(shape, 3, np.float32), device), requires_grad=True)
    value = float(number)
    for y, expected in (operator(x, number), operator(3.0, value)), (operator(number, x), operator(value, 3.0)):
        assert y.dtype == np.float32 and y.shape == shape
        np.testing.assert_allclose(y.numpy(), expected)
        assert grad(y.sum(), x)[0].dtype == np.float32


PARAMETERS = {
    "leaky_relu": lambda x: ops.leaky_relu(x, np.float64(0.1)),
    "clip": lambda x: ops.clip(x, np.float64(-1), np.float64(1)),
    "dropout": lambda x: ops.dropout(x, np.float64(0.5), np.random.default_rng(0)),
    "where": lambda x: ops.where(x.data > 0, x, np.float64(1)),
    "maximum": lambda x: ops.maximum(x, np.float64(1)),
    "bce_with_logits": lambda x: ops.bce_with_logits(x, np.float64(1)),
}


@pytest.mark.parametrize("operation", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("shape", [(2, 3), ()])
def test_a_numpy_float64_parameter_keeps_float32(operation, shape):
    x = Tensor(np.ones(shape, np.float32), requires_grad=True)
    assert operation(x).dtype == np.float32 and grad(operation(x).sum(), x)[0].dtype == np.float32


def test_integers_stay_integers(device):
    x = Tensor(to_device(np.array([3, 5], np.int32), device))
    assert (x * 2 + 1).dtype == np.int32 and (x * 2 + 1).numpy().tolist() == [7, 11]
    assert x.sum().item() == 8 and x.astype(np.float32).dtype == np.float32


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_whole_numbers_take_the_dtype_of_those_they_meet(dtype, device):
    whole = Tensor(to_device(np.array([[1, 0], [1, 1]]).astype(dtype), device))
    x = Tensor(to_device(np.ones((2, 2), np.float32), device), requires_grad=True)
    for y in (
        *(whole * x, x * whole, whole - x, whole @ x, x @ whole, ops.where(whole.data == 0, whole, x)),
        *(ops.concatenate([whole, x]), ops.stack([whole, x]), ops.maximum(whole, x), ops.einsum("ij,jk", whole, x)),
    ):
        assert y.dtype == grad(y.sum(), x)[0].dtype == np.float32


def test_reductions_of_whole_numbers_are_numpys(device):
    x = np.array([[200, 100, 3], [0, 7, 255]], np.uint8)
    t = Tensor(to_device(x, device))
    for name in "sum", "prod", "cumsum", "max", "min", "mean":
        y, expected = getattr(t, name)(1), getattr(x, name)(1)
        assert np.array_equal(y.numpy(), expected), name
    assert ops.minimum(t, t[::-1]).numpy().tolist() == np.minimum(x, x[::-1]).tolist()
    assert t.prod((0, 1)).item() == 0


HALF = {  # name: (operation, value, how many of it, result)
    "sum": (ops.sum, 0.001, 70_000, 70),
    "mean": (ops.mean, 500, 300, 500),
    "mean of many": (ops.mean, 0.001, 70_000, 0.001),
    "var": (ops.var, 500, 300, 0),
    "std": (lambda x: ops.std(x * ([1.0, -1.0] * 150)), 500, 300, 500),  # its square would be infinite
    "prod": (lambda x: ops.prod(x ** ([1.0, -1.0] * 2)), 500, 4, 1),
    "cumsum": (lambda x: ops.cumsum(x)[-1], 0.001, 70_000, 70),
    "softmax": (lambda x: ops.softmax(x)[0], 0, 70_000, 1 / 70_000),
    "log_softmax": (lambda x: ops.log_softmax(x)[0], 0, 70_000, -np.log(70_000)),
    "logsumexp": (ops.logsumexp, 0, 70_000, np.log(70_000)),
    "sum_to": (lambda x: ops.sum_to(x, (1,)), 0.001, 70_000, 70),
    "matmul": (lambda x: x @ np.ones(70_000, np.float16), 0.001, 70_000, 70),
    "einsum": (lambda x: ops.einsum("i,i", x, np.ones(70_000, np.float16)), 0.001, 70_000, 70),
}


@pytest.mark.parametrize("operation,value,count,result", HALF.values(), ids=HALF)
def test_many_float16_are_added_in_float32(operation, value, count, result):
    x = Tensor(np.full(count, value, np.float16), requires_grad=True)
    y = operation(x)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.numpy().astype(float), result, rtol=3e-3)
    (g,) = grad(y.sum(), x)
    assert g.dtype == np.float16 and np.isfinite(g.data).all()


def test_a_broadcast_float16_gets_the_sum_of_many_gradients():
    x = Tensor(np.ones(1, np.float16), requires_grad=True)
    y = x * Tensor(np.full(70_000, 0.001, np.float16))
    assert grad(y, x, np.ones(70_000, np.float16))[0].data == pytest.approx(70, rel=1e-3)


METHODS = """abs astype avg_pool2d broadcast_to clip cos cumsum dropout elu erf exp expand_dims expm1 flip interpolate
inverse leaky_relu log log1p log_softmax logsumexp max max_pool2d mean min pad prod relu repeat reshape sigmoid sin skew
slogdet softmax softplus split sqrt squeeze std sum sum_to tanh to transpose unskew var"""


def test_what_takes_one_tensor_is_a_method(rng):
    assert all(getattr(Tensor, name) is getattr(ops, name).__wrapped__ for name in METHODS.split())
    x = Tensor(rng.standard_normal((2, 3)))
    assert np.array_equal(x.softmax(0).data, ops.softmax(x, 0).data)
    assert x.max() == ops.max(x) and x.std(1, keepdims=True).shape == (2, 1)


@pytest.mark.parametrize("nothing", [None, "2", object()], ids=repr)
def test_what_is_no_number_is_refused(nothing):
    with pytest.raises(TypeError, match="needs real numbers"):
        Tensor(np.ones(2, np.float32)) + nothing


def test_astype_goes_back():
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    y = x.astype(np.float64)
    assert y.dtype == np.float64 and grad((y * y).sum(), x)[0].dtype == np.float32
    with pytest.raises(TypeError, match="astype: dtype is int64, needs a floating one"):
        x.astype(np.int64)  # a step function, whose derivative would be a silent zero


# -- elementwise: kinks, limits, edges


KINKS = {  # name: (function, x, derivative there)
    "relu": (ops.relu, 0.0, 0.0),
    "abs": (ops.abs, 0.0, 0.0),
    "leaky_relu": (ops.leaky_relu, 0.0, 0.01),
    "elu": (ops.elu, 0.0, 1.0),
    "clip low": (lambda x: ops.clip(x, -1, 1), -1.0, 1.0),
    "clip high": (lambda x: ops.clip(x, -1, 1), 1.0, 1.0),
    "maximum": (lambda x: ops.maximum(x, 0), 0.0, 0.5),
    "maximum right": (lambda x: ops.maximum(0, x), 0.0, 0.5),
    "maximum of itself": (lambda x: ops.maximum(x, x), 3.0, 1.0),
    "minimum": (lambda x: ops.minimum(x, 0), 0.0, 0.5),
    "minimum right": (lambda x: ops.minimum(0, x), 0.0, 0.5),
    "std of equal values": (lambda x: ops.std(x) * 1, 3.0, 0.0),
    "x ** 0 at inf": (lambda x: x**0, np.inf, 0.0),
    "x ** array 0 at inf": (lambda x: x ** to_device(np.zeros(2), x.device), np.inf, 0.0),
    "x ** 0 at 0": (lambda x: x**0, 0.0, 0.0),
    "x ** 1 at 0": (lambda x: x**1, 0.0, 1.0),
    "x ** 2 at 0": (lambda x: x**2, 0.0, 0.0),
    "x ** 3 at -2": (lambda x: x**3, -2.0, 12.0),
    "0 ** x at 2": (lambda x: 0**x, 2.0, 0.0),
}


@pytest.mark.parametrize("function,at,slope", KINKS.values(), ids=KINKS)
def test_derivative_at_a_kink(function, at, slope, device):
    x = Tensor(to_device(np.array([at, at]), device), requires_grad=True)
    with np.errstate(all="raise"):
        assert grad(function(x).sum(), x)[0].numpy().tolist() == [slope, slope]


def test_second_derivative_of_a_power_at_zero():
    x = Tensor(np.zeros(3), requires_grad=True)
    with np.errstate(all="raise"):
        (first,) = grad((x ** np.array([1.0, 2.0, 3.0])).sum(), x, create_graph=True)
        assert grad(first.sum(), x)[0].numpy().tolist() == [0, 2, 0]


def test_a_power_with_exponent_zero():
    """d/dx x^y = y x^(y-1), whose derivative in y is x^(y-1) (1 + y log x): 1 / x at y = 0."""
    gradcheck(lambda a, b: a**b, (np.array([2.0]), np.array([0.0])))
    x, y = Tensor(np.array([3.0, 0.0]), requires_grad=True), Tensor(np.array([0.0, 0.0]), requires_grad=True)
    with np.errstate(all="raise"):
        (gx,) = grad((x**y).sum(), x, create_graph=True)
        assert gx.numpy().tolist() == [0, 0]
        assert grad(gx[0], y)[0].numpy().tolist() == [1 / 3, 0]
    gradcheck(lambda x: x**0 + x ** np.array([0.0, 1.0]), np.array([2.0, 3.0]))


def test_a_power_of_zero_in_its_exponent():
    """d/dy x^y = x^y log x, whose limit at x = 0 is 0 for y > 0."""
    x, y = Tensor(np.array([0.0, 2.0]), requires_grad=True), Tensor(np.array([2.0, 3.0]), requires_grad=True)
    with np.errstate(all="raise"):
        gx, gy = grad((x**y).sum(), [x, y])
    np.testing.assert_allclose(gx.numpy(), [0, 12])
    np.testing.assert_allclose(gy.numpy(), [0, 8 * np.log(2)])


SMALL = np.exp(-50.0)
EXTREMES = {  # name: (function, x, values, derivatives)
    "sigmoid": (ops.sigmoid, [-1000, -50, 0, 50, 1000], [0, SMALL, 0.5, 1, 1], [0, SMALL, 0.25, 0, 0]),
    "softplus": (ops.softplus, [-1000, -50, 50, 1000], [0, SMALL, 50, 1000], [0, SMALL, 1, 1]),
    "tanh": (ops.tanh, [-1000, 1000], [-1, 1], [0, 0]),
    "elu": (ops.elu, [-1000, 1000], [-1, 1000], [0, 1]),
    "bce of 1": (lambda x: ops.bce_with_logits(x, 1), [-1000, -50, 50, 1000], [1000, 50, SMALL, 0], [-1, -1, 0, 0]),
    "bce of 0": (lambda x: ops.bce_with_logits(x, 0), [-1000, -50, 50, 1000], [0, SMALL, 50, 1000], [0, SMALL, 1, 1]),
    "logsumexp": (lambda x: ops.logsumexp(x, 0), [-1000, 1000, 1000], 1000 + np.log(2), [0, 0.5, 0.5]),
    "logsumexp low": (lambda x: ops.logsumexp(x, 0), [-1000, -1000], -1000 + np.log(2), [0.5, 0.5]),
    "softmax": (ops.softmax, [-1000, 0, 1000], [0, 0, 1], [0, 0, 0]),
    "log_softmax": (ops.log_softmax, [-1000, 1000], [-2000, 0], [1, -1]),
    "log1p": (ops.log1p, [1e-20], [1e-20], [1]),
    "expm1": (ops.expm1, [1e-20], [1e-20], [1]),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function,at,values,slopes", EXTREMES.values(), ids=EXTREMES)
def test_far_from_zero(function, at, values, slopes, dtype, device):
    x = Tensor(to_device(np.array(at, dtype), device), requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = function(x)
        (g,) = grad(y.sum(), x)
    np.testing.assert_allclose(y.numpy(), values, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(g.numpy(), slopes, rtol=1e-4, atol=1e-20)  # float32 rounds 1000.69


def test_where_takes_a_list_a_number_or_a_tensor_as_condition():
    x = Tensor(np.array([1.0, 2.0]))
    for condition in [True, False], np.array([True, False]), Tensor(np.array([True, False])):
        assert ops.where(condition, x, 0).numpy().tolist() == [1, 0]
    assert ops.where(True, x, 0).numpy().tolist() == [1, 2]
    assert ops.where([True, False], 1.0, 2.0).dtype == np.float32


def test_where_of_two_numbers_lives_where_its_condition_does(device):
    condition = to_device(np.array([True, False]), device)
    y = ops.where(condition, 1.0, 0.0)
    assert y.device == device and y.dtype == np.float32 and y.numpy().tolist() == [1, 0]


@pytest.mark.parametrize("p", [0, 0.1, 0.5, 0.9])
def test_dropout_keeps_a_share_and_the_mean(p, rng):
    """n values: the share kept is within 5 of its standard deviations, sqrt(p (1 - p) / n)."""
    n = 40_000
    x = Tensor(np.ones((200, 200), np.float32), requires_grad=True)
    y = ops.dropout(x, p, rng)
    kept = y.data != 0
    assert y.shape == x.shape and y.dtype == np.float32
    assert np.abs(kept.mean() - (1 - p)) <= 5 * np.sqrt(p * (1 - p) / n)
    np.testing.assert_allclose(y.data[kept], 1 / (1 - p), rtol=1e-6)
    assert np.array_equal(grad(y.sum(), x)[0].data, y.data)
    if p:  # in both directions as many as independence gives
        assert np.abs((kept[1:] == kept[:-1]).mean() - (p * p + (1 - p) ** 2)) < 0.02
        assert np.abs((kept[:, 1:] == kept[:, :-1]).mean() - (p * p + (1 - p) ** 2)) < 0.02


def test_dropout_follows_its_rng_alone(device):
    x = Tensor(to_device(np.ones((5, 6), np.float32), device))
    one, same, other = (ops.dropout(x, 0.5, np.random.default_rng(seed)).numpy() for seed in (3, 3, 4))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    kept = np.random.default_rng(3).random((5, 6), np.float32) >= 0.5  # the same on each device
    assert np.array_equal(one, kept * np.float32(2))


# -- reductions


def test_ties_share_the_largest_values_gradient(device):
    x = Tensor(to_device(np.array([[1.0, 3, 3], [2, 2, 2], [5, 0, 4]]), device), requires_grad=True)
    (g,) = grad(ops.max(x, 1).sum(), x)
    np.testing.assert_allclose(g.numpy(), [[0, 1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3], [1, 0, 0]])


def test_logsumexp_of_no_probability():
    x = Tensor(np.array([[-np.inf, 0.0], [-np.inf, -np.inf]]), requires_grad=True)
    with np.errstate(divide="ignore"):
        y = ops.logsumexp(x, 1)
    assert y.numpy().tolist() == [0, -np.inf]
    with np.errstate(invalid="ignore"):  # the second row's derivative is 0/0
        assert grad(y[0], x)[0].numpy()[0].tolist() == [0, 1]


@pytest.mark.parametrize("shape,axis", [((2, 0), 1), ((2, 0), 0), ((0, 3), 0), ((0, 3), -1), ((0,), 0), ((2, 0, 3), 1)])
def test_softmax_of_nothing(shape, axis, device):
    x = Tensor(to_device(np.zeros(shape, np.float32), device), requires_grad=True)
    for operation in ops.softmax, ops.log_softmax:
        y = operation(x, axis)
        assert y.shape == grad(y.sum(), x)[0].shape == shape and y.dtype == np.float32
    with np.errstate(divide="ignore"):
        y = ops.logsumexp(x, axis)
    expected = np.zeros(shape).sum(axis) - np.inf
    assert y.shape == expected.shape and np.array_equal(y.numpy(), expected)
    assert grad(y, x, to_device(np.ones(y.shape, np.float32), device))[0].shape == shape


def test_ties_share_the_smallest_values_gradient(device):
    x = Tensor(to_device(np.array([[1.0, 3, 1], [2, 2, 2], [5, 0, 4]]), device), requires_grad=True)
    (g,) = grad(ops.min(x, 1).sum(), x)
    np.testing.assert_allclose(g.numpy(), [[1 / 2, 0, 1 / 2], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]])


def test_product_with_zeros(device):
    """The derivative is the product of the others: none is zero where one entry is, all are where two are."""
    x = Tensor(to_device(np.array([[2.0, 0, 5], [0, 3, 0]]), device), requires_grad=True)
    (g,) = grad(ops.prod(x, 1).sum(), x, create_graph=True)
    assert g.numpy().tolist() == [[0, 10, 0], [0, 0, 0]]
    assert grad(g.sum(), x)[0].numpy().tolist() == [[5, 7, 2], [3, 0, 3]]  # d/dx_i of sum_j prod of all but j


def test_cumsum_adds_one_after_the_other(rng):
    x = rng.standard_normal((3, 4))
    expected, total = np.empty_like(x), np.zeros(3)
    for i in range(4):
        total = total + x[:, i]
        expected[:, i] = total
    np.testing.assert_allclose(ops.cumsum(Tensor(x), 1).numpy(), expected)


def test_softmax_sums_to_one_and_shifts_change_nothing(rng):
    x = Tensor(rng.standard_normal((4, 5)))
    np.testing.assert_allclose(ops.softmax(x, 0).sum(0).numpy(), 1)
    np.testing.assert_allclose(ops.softmax(x + 100).numpy(), ops.softmax(x).numpy())
    np.testing.assert_allclose(ops.log_softmax(x).exp().numpy(), ops.softmax(x).numpy())


# -- matrices


def test_inverse_times_matrix_is_identity(rng, device):
    x = Tensor(to_device(rng.standard_normal((3, 4, 4)), device))
    for product in x.inverse() @ x, x @ x.inverse():
        np.testing.assert_allclose(product.numpy(), np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-12)


def test_the_gradient_of_the_log_determinant_is_the_inverse_transposed(rng, device):
    x = Tensor(to_device(rng.standard_normal((5, 3, 3)), device), requires_grad=True)
    sign, log_det = x.slogdet()
    expected = np.linalg.slogdet(x.numpy())
    assert np.array_equal(sign.numpy(), expected.sign) and not sign.requires_grad
    assert {*expected.sign} == {1, -1}
    np.testing.assert_allclose(log_det.numpy(), expected.logabsdet)
    np.testing.assert_allclose(
        grad(log_det.sum(), x)[0].numpy(), np.linalg.inv(x.numpy()).transpose(0, 2, 1), rtol=1e-9
    )


def test_einsum_of_numbers_and_arrays_without_gradient(rng):
    x, y = rng.standard_normal((2, 3)), Tensor(rng.standard_normal((3, 4)), requires_grad=True)
    z = ops.einsum("ij,jk->ki", x, y)
    np.testing.assert_allclose(z.numpy(), (x @ y.data).T)
    np.testing.assert_allclose(grad(z.sum(), y)[0].data, np.broadcast_to(x.sum(0)[:, None], (3, 4)))


# -- images


def test_ties_in_a_window_share_its_gradient(device):
    x = Tensor(to_device(np.array([[1.0, 1, 0, 2], [1, 1, 0, 0]]), device), requires_grad=True)
    (g,) = grad(ops.max_pool2d(x, 2).sum(), x)
    assert g.numpy().tolist() == [[0.25, 0.25, 0, 1], [0.25, 0.25, 0, 0]]


def test_max_pool_of_whole_numbers(device):
    x = Tensor(to_device(np.arange(16, dtype=np.int32).reshape(4, 4) - 20, device))
    y = ops.max_pool2d(x, 2, padding=1)
    assert y.dtype == np.int32 and y.numpy().tolist() == [[-20, -18, -17], [-12, -10, -9], [-8, -6, -5]]


@pytest.mark.parametrize("size", [1, 3, (4, 7), (9, 2)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_constant_image_stays_constant(mode, size, device):
    x = Tensor(to_device(np.full((2, 3, 4, 5), 2.5, np.float32), device))
    y = x.interpolate(size, mode)
    assert y.shape == (2, 3, *((size, size) if isinstance(size, int) else size))
    np.testing.assert_allclose(y.numpy(), 2.5, rtol=1e-6)


# -- moving values


@pytest.mark.parametrize("h,w", [(1, 1), (1, 5), (5, 1), (3, 4), (4, 3)])
def test_unskew_undoes_skew(h, w, rng, device):
    x = Tensor(to_device(rng.standard_normal((2, h, 3, w)), device))
    y = ops.skew(x, row=1, column=3)
    assert y.shape == (2, h, 3, w + h - 1)
    assert np.array_equal(ops.unskew(y, row=1, column=3).numpy(), x.numpy())


def test_skew_worked_by_hand():
    x = Tensor(np.array([[1, 2], [3, 4], [5, 6]]))
    assert ops.skew(x).numpy().tolist() == [[1, 2, 0, 0], [0, 3, 4, 0], [0, 0, 5, 6]]


def test_unskew_drops_what_skewing_left_empty():
    """The gradient of the dropped entries is zero: skew(unskew(y)) is y only if they are zero in y."""
    y = Tensor(np.ones((3, 4)), requires_grad=True)
    assert grad(ops.unskew(y).sum(), y)[0].numpy().tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_repeated_indices_add_their_gradients(device):
    x = Tensor(to_device(np.zeros(3), device), requires_grad=True)
    index = to_device(np.array([0, 2, 0]), device)
    assert grad(x[index], x, to_device(np.array([1.0, 10, 100]), device))[0].numpy().tolist() == [101, 0, 10]


@pytest.mark.parametrize("index", [[0, 2, 0], np.array([0, 2, 0]), Tensor(np.array([0, 2, 0]))], ids=type)
def test_a_host_index_goes_to_the_device_and_is_counted_as_such(index, strict):
    x = Tensor(to_device(np.arange(3.0), "cuda"), requires_grad=True)
    strict.count.clear()
    y = x[index]
    (g,) = grad(y.sum(), x)
    assert strict.count == {"h2d": 1}
    assert y.numpy().tolist() == [0, 2, 0] and g.numpy().tolist() == [2, 0, 1]


def test_an_empty_list_selects_nothing(device):
    x = Tensor(to_device(np.ones((2, 3)), device), requires_grad=True)
    for y, shape in (x[[]], (0, 3)), (x[:, []], (2, 0)), (x[[], []], (0,)), (x[[[]]], (1, 0, 3)):
        assert y.shape == shape
        assert not grad(y.sum(), x)[0].numpy().any()
    assert ops.softmax_cross_entropy(Tensor(np.ones((0, 3))), []).shape == (0,)


def test_a_boolean_mask_selects(device):
    x = Tensor(to_device(np.array([[1.0, -2], [-3, 4]]), device), requires_grad=True)
    y = x[x > 0]
    assert y.numpy().tolist() == [1, 4] and grad((y * y).sum(), x)[0].numpy().tolist() == [[2, 0], [0, 8]]


def test_parts_put_together_again(rng):
    x = Tensor(rng.standard_normal((2, 6, 3)))
    for sections in 1, 2, 3, 6, [2], [1, 4], [0, 6]:
        assert np.array_equal(ops.concatenate(ops.split(x, sections, 1), 1).numpy(), x.numpy())


# -- losses


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bce_gradient_is_sigmoid_minus_target(dtype, device):
    x, t = (a.ravel().astype(dtype) for a in np.meshgrid([-1000, -50, -1, 0, 2, 50, 1000], [0, 0.3, 1]))
    logits = Tensor(to_device(x, device), requires_grad=True)
    loss = ops.bce_with_logits(logits, to_device(t, device))
    assert loss.shape == x.shape and np.isfinite(loss.numpy()).all()
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64))) - t
    np.testing.assert_allclose(grad(loss.sum(), logits)[0].numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("far", [0, 50, 1000])
def test_cross_entropy_gradient_is_softmax_minus_one_hot(far, rng, device):
    x = rng.standard_normal((6, 3)) + far * rng.integers(-1, 2, (6, 3))
    labels = np.array([0, 1, 2, 0, 1, 2])
    logits = Tensor(to_device(x, device), requires_grad=True)
    loss = ops.softmax_cross_entropy(logits, to_device(labels, device))
    shifted = np.exp(x - x.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    assert loss.shape == (6,) and np.isfinite(loss.numpy()).all() and (loss.numpy() >= 0).all()
    np.testing.assert_allclose(grad(loss.sum(), logits)[0].numpy(), p - np.eye(3)[labels], atol=1e-12)
    exact = p[np.arange(6), labels] > 0
    np.testing.assert_allclose(loss.numpy()[exact], -np.log(p[np.arange(6), labels][exact]))


def test_two_classes_are_one_logit(rng):
    x = rng.standard_normal(5)
    two = Tensor(np.stack([np.zeros(5), x], 1))
    for k in 0, 1:
        one = ops.bce_with_logits(Tensor(x), float(k))
        np.testing.assert_allclose(ops.softmax_cross_entropy(two, np.full(5, k)).numpy(), one.numpy())


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_labels_of_any_integer_dtype(dtype):
    x = Tensor(np.zeros((2, 3), np.float32))
    for labels in np.array([0, 2], dtype), Tensor(np.array([0, 2], dtype)):
        np.testing.assert_allclose(ops.softmax_cross_entropy(x, labels).numpy(), np.log(3), rtol=1e-6)


def test_losses_of_nothing():
    assert ops.softmax_cross_entropy(Tensor(np.zeros((0, 3))), np.zeros(0, int)).shape == (0,)
    assert ops.softmax_cross_entropy(Tensor(np.zeros((0, 0))), np.zeros(0, int)).shape == (0,)
    assert ops.bce_with_logits(Tensor(np.zeros((0, 3))), np.zeros((0, 3))).shape == (0, 3)


def test_bce_broadcasts_one_side_only():
    for logits, targets in ((2, 3), (3,)), ((3,), (2, 3)), ((), (2, 3)), ((2, 1), (2, 3)):
        assert ops.bce_with_logits(Tensor(np.zeros(logits)), np.zeros(targets)).shape == (2, 3)


# -- what is refused, and how


X = Tensor(np.ones((2, 3), np.float32))
REFUSED = {  # call: what the message says: the operation, what it got, what it needs
    "add": (lambda: X + np.ones(4, np.float32), r"Add: .*broadcast.*\(2, 3\) float32.*\(4,\)"),
    "where": (lambda: ops.where(np.ones(2, bool), X, X), r"Where: .*broadcast.*\(2, 3\)"),
    "bce": (lambda: ops.bce_with_logits(X, np.ones((3, 2), np.float32)), r"BceWithLogits: .*\(2, 3\).*\(3, 2\)"),
    "bce square": (
        lambda: ops.bce_with_logits(Tensor(np.ones((64, 1))), np.ones(64)),
        r"BceWithLogits: logits \(64, 1\) and targets \(64,\) would give losses of shape \(64, 64\)",
    ),
    "squeeze": (lambda: X.squeeze(1), r"Squeeze: .*size not equal to one.*\(2, 3\)"),
    "expand_dims": (lambda: X.expand_dims(4), r"ExpandDims: axis 4 is out of bounds"),
    "repeat axis": (lambda: X.repeat(2, 2), r"repeat: axis 2, but there are 2 axes"),
    "repeat -": (lambda: X.repeat(-1, 0), r"repeat: repeats: got -1"),
    "repeat list": (lambda: X.repeat([1, 2], 0), r"repeat: repeats: got \[1, 2\]"),
    "cumsum": (lambda: X.cumsum(2), r"cumsum: axis 2, but there are 2 axes"),
    "prod": (lambda: X.prod(2), r"prod: axis 2, but there are 2 axes"),
    "min of nothing": (lambda: ops.min(Tensor(np.ones((2, 0))), 1), r"Min: zero-size.*\(2, 0\)"),
    "einsum terms": (lambda: ops.einsum("ij,jk->ik", X), r"einsum: 'ij,jk->ik' has 2 terms, but there are 1"),
    "einsum axes": (
        lambda: ops.einsum("i,ij", X, X),
        r"einsum: the term 'i' for shape \(2, 3\) needs one letter per axis",
    ),
    "einsum few": (lambda: ops.einsum("ijk...->i", X), r"einsum: the term 'ijk...' for shape \(2, 3\)"),
    "einsum diagonal": (lambda: ops.einsum("ii->i", X), r"einsum: the term 'ii' for .* each only once"),
    "einsum sizes": (lambda: ops.einsum("ij,ij", X, X.T), r"Einsum: .*\(2, 3\) float32, \(3, 2\) float32"),
    "einsum result": (lambda: ops.einsum("ij->k", X), r"Einsum: .*k"),
    "inverse": (lambda: X.inverse(), r"Inverse: .*square.*\(2, 3\)"),
    "inverse singular": (lambda: Tensor(np.ones((2, 2))).inverse(), r"Inverse: Singular matrix"),
    "slogdet": (lambda: X.slogdet(), r"Slogdet: .*square.*\(2, 3\)"),
    "avg_pool2d": (lambda: X.avg_pool2d(3), r"avg_pool2d: x \(2, 3\) with padding \(0, 0\) .* kernel_size \(3, 3\)"),
    "max_pool2d": (lambda: X.max_pool2d(2, padding=2), r"max_pool2d: x \(2, 3\) with padding \(2, 2\)"),
    "pool line": (lambda: X[0].max_pool2d(1), r"max_pool2d: x \(3,\)"),
    "pool stride": (
        lambda: X.max_pool2d(1, 0),
        r"stride: got \(0, 0\)",
    ),
    "interpolate mode": (
        lambda: X.interpolate(2, "cubic"),
        r"interpolate: mode: got 'cubic'",
    ),
    "interpolate size": (lambda: X.interpolate(0), r"size: got \(0, 0\)"),
    "interpolate line": (lambda: X[0].interpolate(2), r"interpolate: x has shape \(3,\)"),
    "dropout 1": (lambda: ops.dropout(X, 1.0, None), r"dropout: p: got 1.0"),
    "dropout -": (lambda: ops.dropout(X, -0.1, None), r"dropout: p: got -0.1"),
    "sum": (lambda: ops.sum(X, 2), r"Sum: axis 2 is out of bounds.*\(2, 3\)"),
    "mean": (lambda: ops.mean(X, (0, -3)), r"Sum: axis -3 is out of bounds"),
    "max of nothing": (lambda: ops.max(Tensor(np.ones((2, 0))), 1), r"Max: zero-size.*\(2, 0\)"),
    "softmax": (lambda: ops.softmax(X, 5), r"Softmax: axis 5"),
    "reshape": (lambda: X.reshape(4, 2), r"Reshape: cannot reshape.*size 6.*\(4, ?2\)"),
    "transpose": (lambda: X.transpose(0, 2), r"transpose: axis 2, but there are 2 axes"),
    "transpose twice": (lambda: X.transpose(0, 0), r"Transpose: repeated axis.*\(2, 3\)"),
    "broadcast_to": (lambda: ops.broadcast_to(X, (2, 4)), r"BroadcastTo: .*\(2, ?3\).*\(2, ?4\)"),
    "concatenate": (lambda: ops.concatenate([X, X.T]), r"Concatenate: .*\(2, 3\) float32, \(3, 2\) float32"),
    "concatenate axis": (lambda: ops.concatenate([X, X], 2), r"concatenate: axis 2, but there are 2 axes"),
    "concatenate numbers": (lambda: ops.concatenate([X.sum(), X.sum()]), r"concatenate: axis 0, but there are 0 axes"),
    "concatenate none": (lambda: ops.concatenate([]), r"concatenate: got \[\]"),
    "stack": (lambda: ops.stack([X, X.T]), r"Concatenate: .*\(1, 2, 3\) float32, \(1, 3, 2\) float32"),
    "stack axis": (lambda: ops.stack([X], 3), r"stack: axis 3, but there are 3 axes"),
    "stack none": (lambda: ops.stack([]), r"stack: got \[\]"),
    "split": (lambda: ops.split(X, 2, 1), r"split: axis 1 has 3 entries, which 2 parts"),
    "split 0": (lambda: ops.split(X, 0), r"split: sections: got 0"),
    "split axis": (lambda: ops.split(X, 2, 2), r"split: axis 2"),
    "pad -": (lambda: ops.pad(X, [(0, 0), (-1, 0)]), r"pad: widths .*-1.*not negative"),
    "pad count": (lambda: ops.pad(X, [(1, 1)]), r"pad: widths .*2 axes"),
    "flip": (lambda: ops.flip(X, 2), r"Flip: axis 2 is out of bounds"),
    "skew": (lambda: ops.skew(X, 0, 2), r"skew: axis 2, but there are 2 axes"),
    "skew line": (lambda: ops.skew(X[0]), r"skew: axis -2, but there are 1 axes"),
    "unskew": (lambda: ops.unskew(X.T), r"unskew: 3 rows .* x has 2"),
    "matmul": (lambda: X @ X, r"matmul: x \(2, 3\) and y \(2, 3\) need \(..., n, k\) and \(..., k, m\)"),
    "matmul number": (lambda: X @ Tensor(1.0), r"matmul: x \(2, 3\) and y \(\)"),
    "matmul batch": (lambda: ops.matmul(np.ones((2, 1, 3)), np.ones((4, 3, 1))), r"Matmul: .*\(2, 1, 3\).*\(4, 3, 1\)"),
    "labels range": (
        lambda: ops.softmax_cross_entropy(X, np.array([0, 3])),
        r"cross_entropy: labels: got 0 to 3",
    ),
    "labels -": (
        lambda: ops.softmax_cross_entropy(X, np.array([-1, 0])),
        r"softmax_cross_entropy: labels: got -1 to 0",
    ),
    "labels shape": (
        lambda: ops.softmax_cross_entropy(X, np.array([0])),
        r"labels: got shape \(1,\).* whole numbers 0 .. 2, of shape \(2,\)",
    ),
    "labels dtype": (lambda: ops.softmax_cross_entropy(X, np.ones(2)), r"labels: got .*float64"),
    "classes axis": (lambda: ops.softmax_cross_entropy(X, np.array([0, 1]), 2), r"softmax_cross_entropy: axis 2"),
}


@pytest.mark.parametrize("call,message", REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_what_it_got(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dropout_needs_floating_numbers(rng):
    with pytest.raises(TypeError, match="dropout: x has dtype int64"):
        ops.dropout(Tensor(np.ones(3, np.int64)), 0.5, rng)


def test_an_index_out_of_range():
    with pytest.raises(IndexError, match=r"GetItem: index 2 is out of bounds.*\(2, 3\)"):
        X[2]


MIXED = {
    "x + y": lambda x, y: x + y,
    "y / x": lambda x, y: y / x,
    "array * y": lambda x, y: x.data * y,
    "x ** array": lambda x, y: x**y.data,
    "maximum": ops.maximum,
    "where": lambda x, y: ops.where(x.data > 0, y, 0),
    "matmul": lambda x, y: x @ y,
    "concatenate": lambda x, y: ops.concatenate([x, y]),
    "stack": lambda x, y: ops.stack([y, x]),
    "bce_with_logits": ops.bce_with_logits,
    "einsum": lambda x, y: ops.einsum("ij,jk->ik", x, y),
    "minimum": ops.minimum,
    "softmax_cross_entropy": lambda x, y: ops.softmax_cross_entropy(y, np.zeros(3, int)),
    "conv2d": lambda x, y: ops.conv2d(x.reshape(1, 1, 3, 3), y.reshape(1, 1, 3, 3)),
    "conv_transpose2d": lambda x, y: ops.conv_transpose2d(x.reshape(1, 1, 3, 3), y.reshape(1, 1, 3, 3)),
    "grad_outputs": lambda x, y: grad(y * 2, y, x),
}


@pytest.mark.parametrize("call", MIXED.values(), ids=MIXED)
def test_host_and_device_together_are_one_clear_sentence(call, strict):
    x = Tensor(np.ones((3, 3)), requires_grad=True)
    y = Tensor(to_device(np.ones((3, 3)), "cuda"), requires_grad=True)
    with pytest.raises(ValueError, match=r"one array is on the cpu, another on cuda: .*\.to\(device\)"):
        call(x, y)


def test_results_come_back_from_the_device(device):
    x = Tensor(to_device(np.arange(3.0), device))
    assert to_host((x * 2).data).tolist() == [0, 2, 4]
