"""Values and gradients against PyTorch: every operation and layer it has, each model written in it, optimizers."""

import math

import numpy as np
import pytest

from tinygen import Tensor, grad, nn, ops, optim
from tinygen.models import VAE, Autoencoder, PixelCNN, PixelRNN
from tinygen.nn.recurrent import DiagonalLSTM
from tinygen.training import fit

torch = pytest.importorskip("torch")
F = torch.nn.functional

TOLERANCE = {"float32": dict(rtol=1e-5, atol=1e-5), "float64": dict(rtol=1e-10, atol=1e-10)}
both_dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def close(ours, theirs, dtype, name=""):
    ours = ours.numpy() if isinstance(ours, Tensor) else np.asarray(ours)
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == dtype, (name, ours.dtype, theirs.dtype)
    np.testing.assert_allclose(ours, theirs, **TOLERANCE[dtype], err_msg=name)


def compare(ours, theirs, arrays, dtype):
    """Compare values, and gradients with respect to every array for a random cotangent."""
    arrays = [np.asarray(a, dtype) for a in arrays]
    xs = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    y, u = ours(*xs), theirs(*ts)
    close(y, u, dtype, "value")
    g = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    expected = torch.autograd.grad(u, ts, torch.tensor(g))
    for i, (a, b) in enumerate(zip(grad(y, xs, g), expected)):
        close(a, b, dtype, f"gradient in input {i}")


# --- elementwise -------------------------------------------------------------------------------------------------

ANY = np.array([-3.0, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.5])  # with the kinks: 0, and the limits of clip
POSITIVE = np.array([1e-3, 0.1, 0.5, 1.0, 2.0, 7.0])
FAR = np.array([-200.0, -90.0, -20.0, -1e-6, 0.0, 1e-6, 20.0, 90.0, 200.0])

UNARY = {
    "neg": (ops.neg, torch.neg, ANY),
    "exp": (ops.exp, torch.exp, ANY),
    "expm1": (ops.expm1, torch.expm1, [*ANY, 1e-6]),
    "log": (ops.log, torch.log, POSITIVE),
    "log1p": (ops.log1p, torch.log1p, [*POSITIVE, -0.5, 1e-6]),
    "sqrt": (ops.sqrt, torch.sqrt, POSITIVE),
    "abs": (ops.abs, torch.abs, ANY),
    "sin": (ops.sin, torch.sin, ANY),
    "cos": (ops.cos, torch.cos, ANY),
    "erf": (ops.erf, torch.erf, ANY),
    "tanh": (ops.tanh, torch.tanh, FAR),
    "sigmoid": (ops.sigmoid, torch.sigmoid, FAR),
    "softplus": (ops.softplus, lambda x: F.softplus(x, threshold=80), FAR),
    "relu": (ops.relu, torch.relu, ANY),
    "leaky relu": (lambda x: ops.leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2), ANY),
    "elu": (ops.elu, F.elu, FAR),
    "clip": (lambda x: ops.clip(x, -1, 0.5), lambda x: torch.clamp(x, -1, 0.5), ANY),
    "square": (lambda x: x**2, lambda x: x**2, ANY),
    "cube root": (lambda x: x ** (1 / 3), lambda x: x ** (1 / 3), POSITIVE),
    "to the 0": (lambda x: x**0, lambda x: x**0, ANY),
    "to the 1": (lambda x: x**1, lambda x: x**1, ANY),
    "2 to the": (lambda x: 2**x, lambda x: 2**x, ANY),
    "1 over": (lambda x: 1 / x, lambda x: 1 / x, POSITIVE),
    "1 minus": (lambda x: 1 - x, lambda x: 1 - x, ANY),
    "method exp": (lambda x: x.exp() + abs(x), lambda x: x.exp() + abs(x), ANY),
}


@both_dtypes
@pytest.mark.parametrize("name", UNARY)
def test_unary(name, dtype):
    ours, theirs, points = UNARY[name]
    compare(ours, theirs, [points], dtype)


@both_dtypes
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "maximum", "minimum", "pow", "where"])
@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 1), (1, 3)), ((), (2, 3))], ids=str)
def test_binary(name, shapes, dtype, rng):
    x, y = (rng.uniform(0.5, 2, shape) for shape in shapes)
    ours, theirs = getattr(ops, name), {"where": torch.where}.get(name) or getattr(torch, name)
    if name == "where":
        condition = rng.random((2, 3)) < 0.5
        compare(lambda x, y: ours(condition, x, y), lambda x, y: theirs(torch.tensor(condition), x, y), [x, y], dtype)
    else:
        compare(ours, theirs, [x, y], dtype)


@both_dtypes
def test_kinks_of_two(dtype):
    """Ties of maximum share the gradient; 0 to the y has derivative 0 in y."""
    compare(ops.maximum, torch.maximum, [[1, 2, 3], [2, 2, 2]], dtype)
    compare(ops.minimum, torch.minimum, [[1, 2, 3], [2, 2, 2]], dtype)
    compare(ops.pow, torch.pow, [[0, 0, 1, 2], [2, 1, 0, 0]], dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_derivatives_are_infinite():
    """log, sqrt and powers at 0: the same infinities."""
    for ours, theirs in ((ops.log, torch.log), (ops.sqrt, torch.sqrt), (lambda x: x**0.5, lambda x: x**0.5)):
        compare(ours, theirs, [[0.0]], "float64")


def test_astype():
    x, t = Tensor(np.array([1.1, 2.0]), requires_grad=True), torch.tensor([1.1, 2.0], dtype=torch.float64)
    t.requires_grad_()
    y, u = ops.astype(x, np.float32) * 3, t.float() * 3
    close(y, u, "float32")
    g = np.array([0.3, 0.7], np.float32)
    close(grad(y, [x], g)[0], torch.autograd.grad(u, t, torch.tensor(g))[0], "float64")


# --- reductions --------------------------------------------------------------------------------------------------

AXES = [None, 0, -1, (0, 2), (-1, 1)]


@both_dtypes
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "max", "min", "logsumexp"])
def test_reductions(name, axis, keepdims, dtype, rng):
    x = rng.integers(-3, 4, (4, 2, 3)) if name in ("max", "min") else rng.standard_normal((4, 2, 3))  # with ties
    theirs = {"max": torch.amax, "min": torch.amin}.get(name)
    if name in ("var", "std"):
        theirs = lambda x, **how: getattr(torch, name)(x, unbiased=False, **how)  # noqa: E731
    theirs = theirs or getattr(torch, name)
    dim = (0, 1, 2) if axis is None else axis
    compare(lambda x: getattr(ops, name)(x, axis, keepdims), lambda x: theirs(x, dim=dim, keepdim=keepdims), [x], dtype)


@both_dtypes
@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, axis, scale, dtype, rng):
    x = scale * rng.standard_normal((3, 4, 2))
    compare(lambda x: getattr(ops, name)(x, axis), lambda x: getattr(torch, name)(x, axis), [x], dtype)


@both_dtypes
def test_products_and_running_sums(dtype, rng):
    x = rng.standard_normal((4, 3, 5))
    x[0, 1, 2] = x[1, 1, :2] = 0  # one zero, and two that meet
    for axis in (0, 1, -1):
        compare(lambda x, a=axis: ops.prod(x, a), lambda x, a=axis: torch.prod(x, a), [x], dtype)
        compare(lambda x, a=axis: ops.cumsum(x, a), lambda x, a=axis: torch.cumsum(x, a), [x], dtype)
    compare(ops.prod, torch.prod, [x[0]], dtype)
    compare(lambda x: ops.std(x, 1), lambda x: torch.std(x, 1, unbiased=False), [np.ones((2, 3))], dtype)  # 0 there


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_logsumexp_of_nothing():
    x = np.array([[-np.inf, -np.inf], [0.0, -np.inf]])
    close(ops.logsumexp(Tensor(x), 1), torch.logsumexp(torch.tensor(x), 1), "float64")
    for name in "logsumexp", "softmax", "log_softmax":
        close(getattr(ops, name)(Tensor(x[:, :0]), 1), getattr(torch, name)(torch.tensor(x[:, :0]), 1), "float64")


@both_dtypes
def test_losses(dtype, rng):
    x = np.concatenate([FAR, rng.standard_normal(15)]).reshape(4, 6)
    t = rng.random((4, 6))
    compare(ops.bce_with_logits, lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none"), [x, t], dtype)
    labels = rng.integers(0, 5, (3, 2, 4))
    logits = 3 * rng.standard_normal((3, 5, 2, 4))

    def theirs(logits):
        return F.cross_entropy(logits, torch.tensor(labels), reduction="none")

    compare(lambda logits: ops.softmax_cross_entropy(logits, labels), theirs, [logits], dtype)
    compare(lambda x: ops.softmax_cross_entropy(x.transpose(0, 2, 3, 1), labels, axis=-1), theirs, [logits], dtype)


# --- shapes ------------------------------------------------------------------------------------------------------

INDEX = np.array([[0, 2], [2, 2]])
SHAPES = {
    "reshape": (lambda x: ops.reshape(x, 3, -1), lambda x: x.reshape(3, -1)),
    "transpose": (lambda x: ops.transpose(x, 2, 0, 1), lambda x: x.permute(2, 0, 1)),
    "T": (lambda x: x.T, lambda x: x.permute(2, 1, 0)),
    "broadcast_to": (lambda x: ops.broadcast_to(x, (5, 2, 3, 4)), lambda x: x.expand(5, 2, 3, 4)),
    "sum_to": (lambda x: ops.sum_to(x, (3, 1)), lambda x: x.sum_to_size(3, 1)),
    "pad": (lambda x: ops.pad(x, ((1, 0), (0, 0), (2, 3))), lambda x: F.pad(x, (2, 3, 0, 0, 1, 0))),
    "flip": (lambda x: ops.flip(x, 1), lambda x: torch.flip(x, (1,))),
    "flip two": (lambda x: ops.flip(x, (0, 2)), lambda x: torch.flip(x, (0, 2))),
    "expand_dims": (lambda x: ops.expand_dims(x, 1), lambda x: x.unsqueeze(1)),
    "squeeze": (lambda x: x[:1].squeeze(0), lambda x: x[:1].squeeze(0)),
    "repeat": (lambda x: ops.repeat(x, 3, 1), lambda x: torch.repeat_interleave(x, 3, 1)),
    "repeat all": (lambda x: ops.repeat(x, 2), lambda x: torch.repeat_interleave(x, 2)),
    "pad value": (lambda x: ops.pad(x, ((0, 0), (0, 0), (1, 2)), 7), lambda x: F.pad(x, (1, 2), value=7)),
    "slices": (lambda x: x[1, ..., 1:3], lambda x: x[1, ..., 1:3]),
    "steps": (lambda x: x[:, ::2, None, -1], lambda x: x[:, ::2, None, -1]),
    "indices": (lambda x: x[:, INDEX], lambda x: x[:, torch.tensor(INDEX)]),
    "pairs": (lambda x: x[[0, 1, 0], [2, 0, 2]], lambda x: x[[0, 1, 0], [2, 0, 2]]),
    "mask": (lambda x: x[np.eye(2, 3) == 1], lambda x: x[torch.eye(2, 3) == 1]),
    "split": (lambda x: ops.split(x, 2, 2)[1], lambda x: torch.tensor_split(x, 2, 2)[1]),
    "split at": (lambda x: ops.split(x, [1, 3], -1)[1], lambda x: torch.tensor_split(x, [1, 3], -1)[1]),
}


@both_dtypes
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name, dtype, rng):
    compare(*SHAPES[name], [rng.standard_normal((2, 3, 4))], dtype)


@both_dtypes
def test_joining(dtype, rng):
    arrays = [rng.standard_normal((2, n, 3)) for n in (1, 4, 2)]
    compare(lambda *xs: ops.concatenate(xs, 1), lambda *xs: torch.cat(xs, 1), arrays, dtype)
    arrays = [rng.standard_normal((2, 3)) for _ in range(3)]
    for axis in (0, 1, -1):
        compare(lambda *xs, axis=axis: ops.stack(xs, axis), lambda *xs, axis=axis: torch.stack(xs, axis), arrays, dtype)


@both_dtypes
@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,)), ((5, 2, 3), (3, 4)), ((2, 1, 2, 3), (5, 3, 1))],
    ids=str,
)
def test_matmul(shapes, dtype, rng):
    compare(ops.matmul, torch.matmul, [rng.standard_normal(shape) for shape in shapes], dtype)


EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("bij,bkj->bik", (5, 2, 3), (5, 4, 3)),
    ("...ij,...jk->...ik", (5, 1, 2, 3), (6, 3, 4)),
    ("ij,kl->il", (2, 3), (4, 5)),
    ("i,ij,j->", (2,), (2, 3), (3,)),
    ("ijk->ki", (2, 3, 4)),
]


@both_dtypes
@pytest.mark.parametrize("subscripts,shapes", [(s, shapes) for s, *shapes in EINSUMS], ids=str)
def test_einsum(subscripts, shapes, dtype, rng):
    arrays = [rng.standard_normal(shape) for shape in shapes]
    compare(lambda *xs: ops.einsum(subscripts, *xs), lambda *xs: torch.einsum(subscripts, *xs), arrays, dtype)


@both_dtypes
def test_linear_algebra(dtype, rng):
    x = rng.standard_normal((4, 3, 3)) + 3 * np.eye(3)
    compare(ops.inverse, torch.linalg.inv, [x], dtype)
    compare(lambda x: ops.slogdet(x)[1], lambda x: torch.linalg.slogdet(x)[1], [x], dtype)
    close(ops.slogdet(Tensor(-x))[0], torch.linalg.slogdet(torch.tensor(-x))[0], "float64")


# --- pooling and resizing ----------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize(
    "how",
    [dict(kernel_size=2), dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=(2, 3), stride=(3, 1))],
    ids=str,
)
def test_pooling(how, dtype, rng):
    x = rng.standard_normal((2, 3, 6, 7))
    compare(lambda x: ops.avg_pool2d(x, **how), lambda x: F.avg_pool2d(x, **how), [x], dtype)
    compare(lambda x: ops.max_pool2d(x, **how), lambda x: F.max_pool2d(x, **how), [x], dtype)


@both_dtypes
@pytest.mark.parametrize("size", [(4, 5), (8, 10), (3, 2), (7, 9), (1, 1), (6, 5)], ids=str)
def test_interpolate(size, dtype, rng):
    x = rng.standard_normal((2, 3, 4, 5))
    for mode in "nearest", "bilinear":
        compare(
            lambda x, m=mode: ops.interpolate(x, size, m), lambda x, m=mode: F.interpolate(x, size, mode=m), [x], dtype
        )


# --- convolution -------------------------------------------------------------------------------------------------

GEOMETRIES = [
    dict(stride=1, padding=0),
    dict(stride=1, padding=1),
    dict(stride=2, padding=1),
    dict(stride=(2, 3), padding=(0, 2)),
    dict(stride=3, padding=2),
]


@both_dtypes
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g['stride']}-{g['padding']}")
def test_conv2d(geometry, kernel, dtype, rng):
    x, w, b = rng.standard_normal((2, 3, 6, 7)), rng.standard_normal((4, 3, *kernel)), rng.standard_normal(4)
    for arrays in ([x, w, b], [x, w]):
        compare(lambda *a: ops.conv2d(*a, **geometry), lambda *a: F.conv2d(*a, **geometry), arrays, dtype)


@both_dtypes
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g['stride']}-{g['padding']}")
def test_masked_conv2d(geometry, dtype, rng):
    """Masked taps are equivalent to weights of zero."""
    mask = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 1]], bool)
    x, w = rng.standard_normal((2, 3, 6, 7)), rng.standard_normal((4, 3, 3, 3))
    compare(
        lambda x, w: ops.conv2d(x, w, mask=mask, **geometry),
        lambda x, w: F.conv2d(x, w * torch.tensor(mask), **geometry),
        [x, w],
        dtype,
    )


@both_dtypes
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2)], ids=str)
@pytest.mark.parametrize(
    "geometry",
    [
        dict(stride=1, padding=1),
        dict(stride=2, padding=1, output_padding=1),
        dict(stride=(3, 2), output_padding=(2, 0)),
    ],
    ids=lambda g: str(list(g.values())),
)
def test_conv_transpose2d(geometry, kernel, dtype, rng):
    x, w, b = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((3, 2, *kernel)), rng.standard_normal(2)
    compare(
        lambda x, w, b: ops.conv_transpose2d(x, w, b, **geometry),
        lambda x, w, b: F.conv_transpose2d(x, w, b, **geometry),
        [x, w, b],
        dtype,
    )


@both_dtypes
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: f"{g['stride']}-{g['padding']}")
def test_conv_filter_grad(geometry, dtype, rng):
    x = rng.standard_normal((2, 3, 6, 7))
    size = F.conv2d(torch.tensor(x), torch.zeros(4, 3, 3, 3, dtype=torch.float64), **geometry).shape
    gy = rng.standard_normal(size)
    theirs = torch.nn.grad.conv2d_weight
    compare(
        lambda x, gy: ops.conv_filter_grad(x, gy, 3, **geometry),
        lambda x, gy: theirs(x, (4, 3, 3, 3), gy, **geometry),
        [x, gy],
        dtype,
    )


# --- second derivatives ------------------------------------------------------------------------------------------

TWICE = {
    "tanh": (ops.tanh, torch.tanh, [(3, 2)]),
    "softplus": (ops.softplus, F.softplus, [(3, 2)]),
    "softmax": (lambda x: ops.softmax(x, 1), lambda x: torch.softmax(x, 1), [(3, 4)]),
    "logsumexp": (lambda x: ops.logsumexp(x, 1), lambda x: torch.logsumexp(x, 1), [(3, 4)]),
    "div": (ops.div, torch.div, [(3, 2), (2,)]),
    "pow": (ops.pow, torch.pow, [(3, 2), (2,)]),
    "erf": (ops.erf, torch.erf, [(3, 2)]),
    "prod": (lambda x: ops.prod(x, 1), lambda x: torch.prod(x, 1), [(3, 4)]),
    "einsum": (lambda *xs: ops.einsum("ij,jk->k", *xs), lambda *xs: torch.einsum("ij,jk->k", *xs), [(2, 3), (3, 4)]),
    "avg_pool2d": (lambda x: ops.avg_pool2d(x, 2, 1), lambda x: F.avg_pool2d(x, 2, 1), [(1, 2, 3, 4)]),
    "matmul": (ops.matmul, torch.matmul, [(2, 3), (3, 4)]),
    "conv2d": (
        lambda x, w, b: ops.tanh(ops.conv2d(x, w, b, 2, 1)),
        lambda x, w, b: torch.tanh(F.conv2d(x, w, b, 2, 1)),
        [(2, 2, 5, 4), (3, 2, 3, 3), (3,)],
    ),
    "conv_transpose2d": (
        lambda x, w: ops.conv_transpose2d(x, w, None, 2, 1, 1) ** 2,
        lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1) ** 2,
        [(2, 2, 3, 4), (2, 3, 3, 3)],
    ),
}


@both_dtypes
@pytest.mark.parametrize("name", TWICE)
def test_second_derivative(name, dtype, rng):
    ours, theirs, shapes = TWICE[name]
    arrays = [rng.uniform(0.1, 0.5, shape).astype(dtype) for shape in shapes]  # where no tanh is flat
    xs, ts = [Tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    first = grad((ours(*xs) ** 3).sum(), xs, create_graph=True)
    wanted = torch.autograd.grad((theirs(*ts) ** 3).sum(), ts, create_graph=True)
    directions = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    along = sum((g * d).sum() for g, d in zip(first, directions))
    torch_along = sum((g * torch.tensor(d)).sum() for g, d in zip(wanted, directions))
    scale = max(1.0, max(abs(t).max().item() for t in torch.autograd.grad(torch_along, ts, retain_graph=True)))
    for a, b in zip(grad(along, xs), torch.autograd.grad(torch_along, ts)):
        close(a.data / a.dtype.type(scale), b / scale, dtype)


# --- layers ------------------------------------------------------------------------------------------------------


def converted(module, dtype, rng=None):
    """The module in ``dtype``; with ``rng``, its weights are random: those that start at zero would hide errors."""
    for p in module.parameters():
        values = p.data if rng is None else 0.3 * rng.standard_normal(p.shape)
        p.data = values.astype(dtype)
    return module


def check_gradients(loss, module, torch_loss, weights, dtype):
    """``weights``: the parameters by name as torch Tensors, which ``torch_loss`` was computed from."""
    close(loss, torch_loss, dtype, "loss")
    expected = dict(zip(weights, torch.autograd.grad(torch_loss, list(weights.values()))))
    assert list(expected) == [name for name, _ in module.named_parameters()]
    for (name, _), g in zip(module.named_parameters(), grad(loss, module.parameters())):
        close(g, expected[name], dtype, name)


def as_torch(module):
    return {name: torch.tensor(p.numpy(), requires_grad=True) for name, p in module.named_parameters()}


def check_layer(module, theirs, shape, dtype, rng):
    """Compare with ``theirs(x, weights)``: the output, and the gradients with respect to x and the weights."""
    converted(module, dtype, rng)
    x = rng.standard_normal(shape).astype(dtype)
    a, t = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    weights = as_torch(module)
    y, u = module(a), theirs(t, *weights.values())
    close(y, u, dtype, "output")
    g = rng.standard_normal(y.shape).astype(dtype)
    expected = torch.autograd.grad(u, [t, *weights.values()], torch.tensor(g))
    for name, b, e in zip(["x", *weights], grad(y, [a, *module.parameters()], g), expected):
        close(b, e, dtype, name)


@both_dtypes
def test_linear(dtype, rng):
    check_layer(nn.Linear(3, 4, rng=rng), F.linear, (2, 5, 3), dtype, rng)


@both_dtypes
def test_norm_layers(dtype, rng):
    check_layer(nn.LayerNorm(5), lambda x, w, b: F.layer_norm(x, (5,), w, b), (2, 4, 5), dtype, rng)
    check_layer(nn.GroupNorm(2, 6), lambda x, w, b: F.group_norm(x, 2, w, b), (3, 6, 4, 5), dtype, rng)


@both_dtypes
@pytest.mark.parametrize("shape", [(8, 3), (2, 3, 4, 5)], ids=str)
def test_batch_norm(shape, dtype, rng):
    """In training and in evaluation, with the running averages."""
    ours, theirs = nn.BatchNorm(3), (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(3)
    theirs.to(getattr(torch, dtype))
    for _, b in ours.named_buffers():
        b.data = b.data.astype(dtype)
    layer = converted(ours, dtype, rng)
    theirs.load_state_dict({**theirs.state_dict(), **{k: torch.tensor(v) for k, v in layer.state_dict().items()}})
    for training in (True, True, False):
        theirs.train(training)
        layer.forward = lambda x, training=training: nn.BatchNorm.forward(layer, x, training)
        x = rng.standard_normal(shape).astype(dtype) * 3 + 1
        a, t = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
        y, u, g = layer(a), theirs(t), rng.standard_normal(shape).astype(dtype)
        close(y, u, dtype, "output")
        expected = torch.autograd.grad(u, [t, theirs.weight, theirs.bias], torch.tensor(g))
        for b, e in zip(grad(y, [a, layer.weight, layer.bias], g), expected):
            close(b, e, dtype)
        close(layer.running_mean, theirs.running_mean, dtype)
        close(layer.running_var, theirs.running_var, dtype)


@both_dtypes
def test_embedding(dtype, rng):
    indices = np.array([[0, 3], [3, 1]])
    layer = nn.Embedding(5, 3, rng=rng)
    layer.forward = lambda x: nn.Embedding.forward(layer, indices) * x
    check_layer(layer, lambda x, w: F.embedding(torch.tensor(indices), w) * x, (2, 2, 3), dtype, rng)


@both_dtypes
def test_conv_layers(dtype, rng):
    conv = nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=1, rng=rng)
    check_layer(conv, lambda x, w, b: F.conv2d(x, w, b, (2, 1), 1), (2, 3, 6, 5), dtype, rng)
    up = nn.UpConv2d(4, 3, 3, stride=2, padding=1, rng=rng)
    check_layer(up, lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1), (2, 4, 3, 5), dtype, rng)
    larger = nn.UpConv2d(4, 3, 3, stride=2, padding=1, rng=rng)
    larger.forward = lambda x: nn.UpConv2d.forward(larger, x, (6, 9))
    check_layer(larger, lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, (1, 0)), (2, 4, 3, 5), dtype, rng)


def mask(kind, out, into, kernel, groups):
    """The paper's mask: rows above, pixels to the left; in the centre, earlier colours (A), or also the own (B)."""
    kh, kw = kernel
    kept = torch.zeros(out, into, kh, kw)
    for o in range(out):
        for i in range(into):
            colour, seen = o // (out // groups), i // (into // groups)
            for r in range(kh):
                for c in range(kw):
                    before = r < kh // 2 or (r == kh // 2 and c < kw // 2)
                    centre = (r, c) == (kh // 2, kw // 2)
                    kept[o, i, r, c] = before or (centre and (colour > seen or (kind == "B" and colour == seen)))
    return kept


def masked_conv(kind, x, w, b, groups):
    kept = mask(kind, *w.shape[:2], w.shape[2:], groups)
    return F.conv2d(x, w * kept, b, padding=(w.shape[2] // 2, w.shape[3] // 2))


@both_dtypes
@pytest.mark.parametrize(
    "kind,kernel,groups",
    [
        (m, k, g)
        for m in "AB"
        for k in [(1, 1), (3, 3), (1, 3), (7, 5)]
        for g in (1, 3)
        if (m, k, g) != ("A", (1, 1), 1)
    ],
)
def test_masked_conv_layer(kind, kernel, groups, dtype, rng):
    """The mask hides later pixels even if masked weights are not zero, as here."""
    layer = nn.MaskedConv2d(kind, 3, 6, kernel, groups, rng=rng)
    check_layer(layer, lambda x, w, b: masked_conv(kind, x, w, b, groups), (2, 3, 4, 5), dtype, rng)


@both_dtypes
@pytest.mark.parametrize("state", [False, True])
def test_lstm(state, dtype, rng):
    layer, theirs = nn.LSTM(3, 4, rng=rng), torch.nn.LSTM(3, 4, batch_first=True, dtype=getattr(torch, dtype))
    converted(layer, dtype, rng)
    weights = dict(zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"), layer.parameters()))
    theirs.load_state_dict({k: torch.tensor(p.numpy()) for k, p in weights.items()} | {"bias_hh_l0": torch.zeros(16)})
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((2, 6, 3), (2, 4), (2, 4))]
    xs, ts = [Tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    if state:
        y, (h, c) = layer(xs[0], (xs[1], xs[2]))
        u, (hu, cu) = theirs(ts[0], (ts[1][None], ts[2][None]))
    else:
        xs, ts = xs[:1], ts[:1]
        y, (h, c) = layer(xs[0])
        u, (hu, cu) = theirs(ts[0])
    ours, wanted = [y, h, c], [u, hu[0], cu[0]]
    for name, a, b in zip("yhc", ours, wanted):
        close(a, b, dtype, name)
    gs = [rng.standard_normal(a.shape).astype(dtype) for a in ours]
    expected = torch.autograd.grad(wanted, [*ts, *list(theirs.parameters())[:3]], [torch.tensor(g) for g in gs])
    for i, (a, b) in enumerate(zip(grad(ours, [*xs, *weights.values()], gs), expected)):
        close(a, b, dtype, f"gradient {i}")


# --- the LSTMs that scan an image, pixel by pixel ----------------------------------------------------------------


def gates_of(weights, bias, kind, groups, x):
    """Input to state: a masked convolution with channels (colour, gate, unit); returned as (gate, colour, unit)."""
    y = masked_conv(kind, x, weights, bias, groups)
    n, channels, h, w = y.shape
    return y.reshape(n, groups, 4, channels // groups // 4, h, w).transpose(1, 2).reshape(n, channels, h, w)


def cell(a, c):
    i, f, g, o = a.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def row_lstm(x, w, b, state, h0, c0, groups=1):
    """One row at a time: the state of a row depends on a 1 x 3 convolution over the state above."""
    gates = gates_of(w, b, "B", groups, x)
    n, _, _, width = gates.shape
    h, c = (s[None, :, None].expand(n, -1, width) for s in (h0, c0))
    rows = []
    for r in range(x.shape[2]):
        h, c = cell(gates[:, :, r] + F.conv1d(h, state, padding=1), c)
        rows.append(h)
    return torch.stack(rows, 2)


def diagonal_lstm(x, w, b, state, groups=1):
    """From the upper left, one pixel at a time: its state depends on those above (tap 0) and to the left (tap 1)."""
    gates = gates_of(w, b, "B", groups, x)
    n, hidden, zero = len(x), state.shape[1], torch.zeros(len(x), state.shape[1], dtype=x.dtype)
    h, c = {}, {}
    for r in range(x.shape[2]):
        for k in range(x.shape[3]):
            above, left = h.get((r - 1, k), zero), h.get((r, k - 1), zero)
            a = gates[:, :, r, k] + above @ state[:, :, 0].T + left @ state[:, :, 1].T
            h[r, k], c[r, k] = cell(a, c.get((r, k - 1), zero))
    return torch.stack(list(h.values()), 2).reshape(n, hidden, *x.shape[2:])


def diagonal_bilstm(x, *weights, groups=1):
    """The direction from the right moves down by one row, so that it sees nothing to come (section 3.2, figure 3)."""
    left = diagonal_lstm(x, *weights[:3], groups=groups)
    right = diagonal_lstm(x.flip(3), *weights[3:], groups=groups).flip(3)
    return left + F.pad(right, (0, 0, 1, 0))[:, :, :-1]


@both_dtypes
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", [(3, 4), (5, 2), (1, 3), (3, 1)], ids=str)
def test_image_lstms(size, groups, dtype, rng):
    shape = (2, 3, *size)
    layer = nn.RowLSTM(3, 3, groups, rng=rng)
    check_layer(layer, lambda x, *w: row_lstm(x, *w, groups=groups), shape, dtype, rng)
    if size[0] > 1:  # with one row nothing from the right is seen
        layer = nn.DiagonalBiLSTM(3, 3, groups, rng=rng)
        check_layer(layer, lambda x, *w: diagonal_bilstm(x, *w, groups=groups), shape, dtype, rng)
    one_way = DiagonalLSTM(3, 3, groups, rng=rng)
    one_way.forward = lambda x: DiagonalLSTM.forward(one_way, x.transpose(2, 1, 3, 0)).transpose(3, 1, 0, 2)
    check_layer(one_way, lambda x, *w: diagonal_lstm(x, *w, groups=groups), shape, dtype, rng)


# --- models ------------------------------------------------------------------------------------------------------


def encoder(x, w, prefix="encoder."):
    for i in range(4):
        x = torch.relu(F.conv2d(x, w[f"{prefix}convs.{i}.weight"], w[f"{prefix}convs.{i}.bias"], stride=2, padding=1))
    return F.linear(x.flatten(1), w[f"{prefix}out.weight"], w[f"{prefix}out.bias"])


def decoder(z, w, image_shape):
    """``sizes``: halved four times, rounded up; a step back to an even size needs one row or column more."""
    sizes = [image_shape[1:]]
    for _ in range(4):
        sizes.append(tuple(math.ceil(n / 2) for n in sizes[-1]))
    h = torch.relu(F.linear(z, w["decoder.into.weight"], w["decoder.into.bias"])).reshape(len(z), 64, *sizes[4])
    for i in range(4):
        extra = tuple(1 - n % 2 for n in sizes[3 - i])
        weight, bias = w[f"decoder.ups.{i}.weight"], w[f"decoder.ups.{i}.bias"]
        h = F.conv_transpose2d(h, weight, bias, stride=2, padding=1, output_padding=extra)
        h = torch.relu(h) if i < 3 else h
    return h


@both_dtypes
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 7, 10)], ids=str)
def test_autoencoder(image_shape, dtype, rng):
    model = converted(Autoencoder(image_shape, code=3, rng=rng), dtype)
    x, w = rng.random((4, *image_shape)).astype(dtype), as_torch(model)
    reconstruction = decoder(encoder(torch.tensor(x), w), w, image_shape)
    close(model.reconstruct(x), reconstruction, dtype)
    loss = ((reconstruction - torch.tensor(x)) ** 2).sum() / 4
    check_scaled(model.loss(x), model, loss, w, dtype)


def check_scaled(loss, module, torch_loss, weights, dtype):
    """As ``check_gradients``, relative to the largest entry: in float32 a sum's error is relative to its terms."""
    scale = 1.0
    if dtype == "float32":
        gradients = torch.autograd.grad(torch_loss, list(weights.values()), retain_graph=True)
        scale = max(1.0, abs(torch_loss.item()), *(g.abs().max().item() for g in gradients))
    check_gradients(loss / scale, module, torch_loss / scale, weights, dtype)


@both_dtypes
@pytest.mark.parametrize("beta", [1.0, 4.0])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_vae(likelihood, beta, dtype, rng):
    """-ELBO = KL(q(z|x) || p(z)) - log p(x|z), with the same noise."""
    shape, latent = (1, 7, 6), 3
    model = converted(VAE(shape, latent, beta, likelihood, rng=rng), dtype)
    if likelihood == "gaussian":
        model.log_var.data[...] = -0.7
    x = (rng.random((5, *shape)) < 0.5).astype(dtype)
    w = as_torch(model)
    mean, log_var = encoder(torch.tensor(x), w).chunk(2, 1)
    eps = torch.tensor(np.random.default_rng(8).standard_normal((5, latent), dtype))
    y = decoder(mean + torch.exp(0.5 * log_var) * eps, w, shape)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, torch.exp(0.5 * log_var)), torch.distributions.Normal(0, 1)
    ).sum(1)
    if likelihood == "bernoulli":
        p = torch.distributions.Bernoulli(logits=y)
    else:
        p = torch.distributions.Normal(y, torch.exp(0.5 * w["log_var"]))
    reconstruction = p.log_prob(torch.tensor(x)).sum((1, 2, 3))
    terms = model.bound(x, np.random.default_rng(8))
    close(terms.kl, kl, dtype)
    np.testing.assert_allclose(
        terms.reconstruction.numpy(), reconstruction.detach().numpy(), rtol=TOLERANCE[dtype]["rtol"]
    )
    loss = (beta * kl - reconstruction).mean()
    check_scaled(model.loss(x, np.random.default_rng(8)), model, loss, w, dtype)


def autoregressive_loss(logits_of, x, levels, w, dtype):
    """-sum_i log p(x_i | x_<i), mean over the images; ``logits_of(scaled images, weights)``: (N, C * K, H, W)."""
    t = torch.tensor(x)
    y = logits_of(t.to(getattr(torch, dtype)) * 2 / (levels - 1) - 1, w)
    n, channels, height, width = x.shape
    y = y.reshape(n, channels, -1, height, width)
    if levels == 2:
        return F.binary_cross_entropy_with_logits(y[:, :, 0], t.to(y.dtype), reduction="sum") / n
    return F.cross_entropy(y.transpose(1, 2), t.long(), reduction="sum") / n


def ends(body, groups):
    """7x7 mask A, the body, twice ReLU and 1x1 mask B."""

    def logits(x, w):
        def conv(kind, name, h):
            return masked_conv(kind, h, w[f"{name}.weight"], w[f"{name}.bias"], groups)

        h = body(conv("A", "first", x), w, conv)
        return conv("B", "last", torch.relu(conv("B", "hidden", torch.relu(h))))

    return logits


def residual_blocks(h, w, conv):
    for i in range(2):
        y = conv("B", f"blocks.{i}.down", torch.relu(h))
        y = conv("B", f"blocks.{i}.middle", torch.relu(y))
        h = h + conv("B", f"blocks.{i}.up", torch.relu(y))
    return h


def residual_lstms(scan, groups):
    def body(h, w, conv):
        for i in range(2):
            own = [value for name, value in w.items() if name.startswith(f"layers.{i}.lstm")]
            h = h + conv("B", f"layers.{i}.up", scan(h, *own, groups=groups))
        return h

    return body


AUTOREGRESSIVE = {
    "pixelcnn": (PixelCNN, {"blocks": 2}, lambda groups: residual_blocks),
    "row": (PixelRNN, {"kind": "row", "layers": 2}, lambda groups: residual_lstms(row_lstm, groups)),
    "diagonal": (PixelRNN, {"kind": "diagonal", "layers": 2}, lambda groups: residual_lstms(diagonal_bilstm, groups)),
}


@both_dtypes
@pytest.mark.parametrize("channels, levels", [(1, 2), (3, 4), (3, 2), (1, 4)])
@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_autoregressive(name, channels, levels, dtype, rng):
    """van den Oord et al. 2016, sections 3.1 to 3.5 and figure 5."""
    kind, options, body = AUTOREGRESSIVE[name]
    shape = (channels, 4, 5)
    model = converted(kind(image_shape=shape, levels=levels, channels=3, **options, rng=rng), dtype, rng)
    x = rng.integers(0, levels, (3, *shape)).astype(np.uint8)
    w = as_torch(model)
    loss = autoregressive_loss(ends(body(channels), channels), x, levels, w, dtype)
    check_scaled(model.loss(x), model, loss, w, dtype)


# --- optimizers --------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": (lambda p: optim.SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum": (lambda p: optim.SGD(p, 0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, 0.9)),
    "rmsprop": (lambda p: optim.RMSProp(p, 0.01), lambda p: torch.optim.RMSprop(p, 0.01)),
    "rmsprop 0.9": (
        lambda p: optim.RMSProp(p, 0.01, 0.9, 1e-4),
        lambda p: torch.optim.RMSprop(p, 0.01, 0.9, eps=1e-4),
    ),
    "adam": (lambda p: optim.Adam(p, 0.01), lambda p: torch.optim.Adam(p, 0.01)),
    "adam eps": (
        lambda p: optim.Adam(p, 0.05, (0.5, 0.9), 1e-2),
        lambda p: torch.optim.Adam(p, 0.05, (0.5, 0.9), 1e-2),
    ),
}


@both_dtypes
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, dtype, rng):
    start = [rng.standard_normal(shape).astype(dtype) for shape in ((3, 4), (5,))]
    ours, theirs = [nn.Parameter(a.copy()) for a in start], [torch.tensor(a, requires_grad=True) for a in start]
    a, b = OPTIMIZERS[name][0](ours), OPTIMIZERS[name][1](theirs)
    for _ in range(30):
        for p, t in zip(ours, theirs):
            g = rng.standard_normal(p.shape).astype(dtype)
            p.grad, t.grad = Tensor(g), torch.tensor(g)
        a.step()
        b.step()
    for p, t in zip(ours, theirs):
        close(p, t, dtype)


@both_dtypes
@pytest.mark.parametrize("clip_norm", [0.01, 0.5, 1e3])
def test_clipped_training(clip_norm, dtype, rng):
    """fit on one full batch against PyTorch's loop with clip_grad_norm_."""

    class Model(nn.Module):
        unit = "squared error"

        def __init__(self):
            self.out = nn.Linear(6, 6, rng=rng)

        def loss(self, x, rng):
            x = Tensor(x.data.astype(dtype)).reshape(x.shape[0], 6)
            return ((self.out(x) - ops.tanh(3 * x)) ** 2).sum() / x.shape[0]

    model, images = converted(Model(), dtype), rng.standard_normal((16, 1, 2, 3)).astype(dtype)
    weights, x = as_torch(model), torch.tensor(images).reshape(16, 6)
    optimizer = torch.optim.SGD(weights.values(), 0.1, 0.5)
    for _ in range(10):
        optimizer.zero_grad()
        ((F.linear(x, *weights.values()) - torch.tanh(3 * x)) ** 2).sum().div(16).backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), clip_norm)
        optimizer.step()
    own = optim.SGD(model.parameters(), 0.1, 0.5)
    fit(model, images, steps=10, optimizer=own, rng=rng, batch_size=16, clip_norm=clip_norm, progress=False)
    for p, t in zip(model.parameters(), weights.values()):
        close(p, t, dtype)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_muon(shape, rng):
    """PyTorch's Muon multiplies in bfloat16, so the tolerance is relative to the distance moved."""
    start = rng.standard_normal(shape).astype(np.float32)
    ours, theirs = nn.Parameter(start.copy()), torch.nn.Parameter(torch.tensor(start))
    a = optim.Muon([ours], 0.01, weight_decay=0.5)
    b = torch.optim.Muon([theirs], 0.01, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(20):
        g = rng.standard_normal(shape).astype(np.float32)
        ours.grad, theirs.grad = Tensor(g), torch.tensor(g)
        a.step()
        b.step()
    moved = theirs.detach().numpy() - start
    assert np.linalg.norm(ours.data - start - moved) < 0.02 * np.linalg.norm(moved)
