"""Wrong arguments: every public call, one wrong value after the other in each of its arguments.

``CALLS`` has a right call for each function, and for each argument its kind. ``WRONG`` has for each kind what must be
refused in one sentence of our own, ``SAME`` other ways of writing the right value, which must give the same result.
"""

import functools
import re
from dataclasses import is_dataclass

import numpy as np
import pytest

from tinygen import Tensor, data, grad, gradcheck, nn, ops
from tinygen.densities import DENSITIES
from tinygen.distributions import Bernoulli, Categorical, Gaussian, GaussianMixture, LogisticMixture, OneHot
from tinygen.factors import mutual_information
from tinygen.models import (
    FFJORD,
    FVSBN,
    GAN,
    GSN,
    MADE,
    NADE,
    NICE,
    PCA,
    RBM,
    TCVAE,
    VAE,
    Autoencoder,
    CategoricalVAE,
    Diffusion,
    GatedPixelCNN,
    Glow,
    MixturePosteriorVAE,
    MixturePriorVAE,
    PixelCNN,
    PixelCNNpp,
    PixelRNN,
    PixelTransformer,
    RealNVP,
    bits_per_dim,
)
from tinygen.ode import dopri5
from tinygen.samples import frechet_distance, nearest_distances, parzen

# Python's and NumPy's own words about a value of the wrong type or kind.
OWN_WORDS = re.compile(
    "has no attribute|not supported between|unsupported operand|not iterable|must be (?:real|str|an int)|cannot unpack|"
    "not subscriptable|not callable|unexpected keyword|cannot be interpreted|ufunc|could not convert|not understood|"
    "bad operand|has no len|required positional|inhomogeneous|must match|can't multiply|invalid literal|cannot convert|"
    "can only|unhashable|unsized|ambiguous|Cannot interpret|only integer scalar|object too deep|truth value"
)


class Torchlike:
    """Like a torch tensor it has a dtype, a shape and methods, but is not an array."""

    dtype, shape, ndim, requires_grad = "torch.float32", (2, 3), 2, False

    def __array__(self, *_, **__):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")

    def sum(self, *_, **__):
        return self


X = np.array([[0.5, 1.0, 1.5], [0.25, 0.75, 2.0]], np.float32)
ONES = np.ones((3, 1, 1), np.float32)
SQUARE = np.array([[2.0, 1.0], [1.0, 3.0]], np.float32)
IMAGES = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype(np.float32)
FILTERS = np.random.default_rng(1).standard_normal((2, 2, 3, 3)).astype(np.float32)
COLOURS = np.array([[0, 1, 3], [2, 2, 0]])  # pixels of two colours
BINARY = (IMAGES[:, :1] > 0).astype(np.uint8)
RNG = "a new generator"
STRANGE = [{}, object(), 1j, "3", b"3", Torchlike(), np.array(["3"]), np.array([None]), np.array([1j])]
NO_NUMBER = [*STRANGE, None, [], np.nan, np.array([1.0, 2.0]), True]
NO_WHOLE = [*STRANGE, None, [], np.nan, np.array([1.0, 2.0]), 1.5, np.inf, 1.0, True]
NO_ARRAY = [*STRANGE, None, [[1.0], [2.0, 3.0]], [None], ["3"], {"a": 1}, np.random.default_rng(0)]
NO_AXIS = [*STRANGE, np.nan, 1.5, np.inf, 1.0, 9, -9]

WRONG = {
    "size": [*NO_WHOLE, 0, -1, (2, 2, 2)],
    "count": [*NO_WHOLE, -1],
    "pair": [*NO_WHOLE, 0, -1, (1,), (2, 2, 2), (1.5, 2), ("3", 3), np.array([[1, 2], [3, 4]])],
    "padding": [*NO_WHOLE, -1, (1,), (-1, 0), ("3", 3)],
    "number": NO_NUMBER,
    "positive": [*NO_NUMBER, -1.0, np.inf],
    "chance": [*NO_NUMBER, -0.1, 1.5, np.inf],
    "rng": [None, 0, 1.5, "3", object(), np.random, np.random.RandomState(0), np.random.default_rng, [1, 2]],
    "array": NO_ARRAY,
    "tensor": NO_ARRAY,
    "axis": [*NO_AXIS, (0, 1), []],
    "axes": [*NO_AXIS, ("3",), (0, 9), (0, 0)],
    "shape": [None, {"a": 1}, object(), 1j, "3", 1.5, (1.5, 2), ("3", 2), (None, 6), Torchlike(), (7, 9)],
    "choice": [None, 0, 1.5, "?", "", object(), [], {}, (), True],
    "dtype": [None, 0, "?", "int32", object(), int, complex, []],
    "labels": [*NO_ARRAY, -1, [-1, 0], [0, 9], [0.0, 1.0], [0], [[0, 1]], [True, False], [np.nan, 0]],
    "binary": [*NO_ARRAY, 5, -1, 0.5, np.nan, np.full((2, 3), 2)],
    "images": [*NO_ARRAY, 5, np.zeros((1, 4, 4)), np.full((2, 1, 4, 4), np.nan)],
    "grey": [*NO_ARRAY, 5, np.zeros((2, 1, 4, 4)), Tensor(np.zeros((2, 1, 4, 4), np.uint8)), [[1, 2]]],
    "image_shape": [*NO_NUMBER, (1, 4), (1, 4, 4, 4), (0, 4, 4), (1, 4, -4), (1, 4.0, 4), (1, "4", 4), (1, True, 4)],
    "channels": [*NO_NUMBER, (), (0,), (2, 1.5), ("3",), (None,), (True,)],
    "mask": [*STRANGE, None, np.ones((7, 5), bool), 5, [[True], [True, False]]],
    "odd": [*NO_WHOLE, 0, -1, 2],
    "levels": [*NO_WHOLE, 1],
    "never": [*NO_ARRAY[1:], X, 5],
    "state": [5, "3", object(), {}, [], (SQUARE,), SQUARE, (SQUARE, None), (SQUARE[:1], SQUARE[:1])],
    "position": [*NO_AXIS[:-2], 2, -3],
    "tensors": [*STRANGE, None, [None], ["3"], [], 5],
    "sections": [*STRANGE, None, np.nan, 1.5, True, 0, -1, 2, ("1",), (1.5, 2)],
    "width": [x for x in NO_WHOLE if x is not True] + [-1, (2, 2, 2)],
    "taps": [*NO_NUMBER, (), (1.5,), ("3",), (None,)],
    "nats": [*STRANGE, None, [], np.nan, True],
    "flag": [*STRANGE, None, [], 0, 1, np.nan, np.array([1.0, 2.0])],
    "keepdims": [*STRANGE, None, [], (), np.nan, np.array([1.0, 2.0])],
    "function": [*STRANGE, None, [], 5, X, nn],
    "parameters": [*STRANGE[1:], None, 5, X, [X], ["x"]],
    "gradient": NO_ARRAY[:9],
    "input": NO_ARRAY,
    "tolerance": [*NO_NUMBER, 0, -1, np.inf],
    "step": [None, 5, "3", object(), [ops.relu], {}],
    "distribution": [5, "3", object(), {}, [], X, Bernoulli(X)],
    "index": [*NO_ARRAY, -1, [-1, 0], [0, 9], [0.0, 1.0], [True, False], [np.nan, 0]],
    "forbidden": [[0, 1], np.array([0, 0]), 5, "3", object()],
    "optional rng": [0, 1.5, "3", object(), np.random, np.random.RandomState(0), [1, 2]],
    "fraction": [*NO_NUMBER, 0, 1, -1, np.inf],
    "temperature": [*NO_NUMBER, 0, -1, np.inf, 1e-40],
}
IMAGE = WRONG["images"]
WRONG["values"] = [*NO_ARRAY, 5, -COLOURS, COLOURS + 0.5, COLOURS * 2, COLOURS[:1], COLOURS.T, COLOURS * np.nan]
WRONG |= {
    "binary images": [*IMAGE, *(np.full((2, 1, 4, 4), v) for v in (2, 0.5, -1)), BINARY * 255],
    "grey images": [*IMAGE, BINARY * 255, (BINARY * 255).astype(int)],
    "keep": [*NO_ARRAY, 5, BINARY, np.ones((3, 3), bool)],
    "step t": [*NO_ARRAY, 1, [1], [0, 1], [1, 4], [1.0, 2.0]],
}


def whole(n):
    return [np.uint8(n), np.int64(n), np.array(n)]


def real(x):
    return [np.float32(x), np.float64(x), np.array(x)]


SAME = {
    "size": whole, "count": whole, "axis": whole, "number": real, "positive": real, "chance": real,
    "pair": lambda n: [*whole(n), (n, n), [np.uint8(n), n]],
    "padding": lambda n: [*whole(n), (n, n), [np.uint8(n), n]],
    "array": lambda x: [np.asarray(x).tolist(), Tensor(x)],
    "tensor": lambda x: [np.asarray(x).tolist(), np.asarray(x)],
    "labels": lambda x: [list(x), np.array(x, np.uint8), np.array(x, np.int64), Tensor(np.array(x))],
    "binary": lambda x: [np.asarray(x).tolist(), np.asarray(x, np.uint8), np.asarray(x, bool)],
    "images": lambda x: [x.tolist(), x.astype(np.float32), Tensor(x)],
    "image_shape": lambda s: [list(s), tuple(map(np.uint8, s)), np.array(s)],
    "channels": lambda s: [list(s), tuple(map(np.uint8, s)), np.array(s)],
    "shape": lambda s: [list(s), tuple(map(np.uint8, s))],
}  # fmt: skip

unary = "abs cos elu erf exp expm1 log log1p neg relu sigmoid sin softplus sqrt tanh".split()
binary = "add div maximum minimum mul pow sub matmul bce_with_logits".split()
reductions = "sum mean var std prod max min logsumexp".split()
LSTM = {"gates": (3, 8, 1, 2), "w": (8, 2, 1), "h0": (2, 1, 2), "c0": (2, 1, 2)}
x, images, rng = {"x": ("array", X)}, {"x": ("array", IMAGES)}, {"rng": ("rng", RNG)}
window = {"kernel_size": ("pair", 2), "stride": ("pair or None", 1), "padding": ("padding", 1)}
convolution = {"stride": ("pair", 2), "padding": ("padding", 1)}
layer, drawn = {"in_channels": ("size", 3), "out_channels": ("size", 6)}, {"gain": ("positive", 0.5)} | rng

CALLS = {
    **{f"ops.{f}": (getattr(ops, f), x) for f in unary},
    **{f"ops.{f}": (lambda x, y, f=f: getattr(ops, f)(x, y), x | {"y": ("array", X.T if f == "matmul" else X)})
       for f in binary},
    **{f"ops.{f}": (getattr(ops, f), x | {"axis": ("axes", 1)}) for f in reductions},
    **{f"ops.{f}": (getattr(ops, f), x | {"axis": ("axes", 1)}) for f in ("softmax", "log_softmax")},
    "ops.cumsum": (ops.cumsum, x | {"axis": ("axis or None", 1)}),
    "ops.astype": (ops.astype, x | {"dtype": ("dtype", np.float64)}),
    "ops.clip": (ops.clip, x | {"low": ("number", 0.5), "high": ("number", 1.0)}),
    "ops.leaky_relu": (ops.leaky_relu, x | {"slope": ("number", 0.5)}),
    "ops.dropout": (ops.dropout, x | {"p": ("chance", 0.5)} | rng),
    "ops.where": (ops.where, {"condition": ("mask", X > 1), "x": ("array", X), "y": ("array", 2 * X)}),
    "ops.reshape": (lambda x, shape: ops.reshape(x, shape), x | {"shape": ("shape", (3, 2))}),
    "ops.broadcast_to": (ops.broadcast_to, x | {"shape": ("shape", (4, 2, 3))}),
    "ops.sum_to": (ops.sum_to, x | {"shape": ("shape", (1, 3))}),
    "ops.transpose": (lambda x, a, b: ops.transpose(x, a, b), x | {"a": ("axis", 1), "b": ("axis", 0)}),
    "ops.squeeze": (ops.squeeze, {"x": ("array", X[None]), "axis": ("axes", 0)}),
    "ops.expand_dims": (ops.expand_dims, x | {"axis": ("axes", 0)}),
    "ops.flip": (ops.flip, x | {"axis": ("axes", 0)}),
    "ops.repeat": (ops.repeat, x | {"repeats": ("count", 2), "axis": ("axis or None", 1)}),
    "ops.getitem": (lambda x, i: ops.getitem(x, i), x | {"i": ("position", 1)}),
    "ops.concatenate": (lambda x, y, axis: ops.concatenate([x, y], axis), x | {"y": ("array", X), "axis": ("axis", 1)}),
    "ops.concatenate, list": (lambda xs: ops.concatenate(xs), {"xs": ("tensors", [X, X])}),
    "ops.stack": (lambda x, y, axis: ops.stack([x, y], axis), x | {"y": ("array", X), "axis": ("axis", 1)}),
    "ops.split": (ops.split, x | {"sections": ("sections", 3), "axis": ("axis", 1)}),
    "ops.pad": (lambda x, before, value: ops.pad(x, [(before, 1), (0, 1)], value),
                x | {"before": ("width", 1), "value": ("number", 2.0)}),
    "ops.nade_logits": (ops.nade_logits, {"x": ("array", X), "w": ("array", ONES[:, :, 0]), "v": ("array", ONES),
                                          "b": ("array", ONES[:, :, 0]), "c": ("array", ONES[0, :, 0])}),
    "ops.scaled_dot_product_attention": (
        ops.scaled_dot_product_attention, {k: ("array", ONES) for k in "qkv"} | {"is_causal": ("flag", True)}),
    "nn.MaskedLinear": (nn.MaskedLinear, {"mask": (None, X > 1), "gain": ("positive", 0.5)} | rng),
    "ops.pad, widths": (ops.pad, x | {"widths": ("input", [(1, 1), (1, 1)])}),
    "ops.skew": (ops.skew, x | {"row": ("axis", 0), "column": ("axis", 1)}),
    "ops.unskew": (ops.unskew, x | {"row": ("axis", 0), "column": ("axis", 1)}),
    "ops.to": (ops.to, x | {"device": ("choice", "cpu")}),
    "ops.inverse": (ops.inverse, {"x": ("array", SQUARE)}),
    "ops.slogdet": (ops.slogdet, {"x": ("array", SQUARE)}),
    "ops.einsum": (lambda s, x, y: ops.einsum(s, x, y),
                   {"s": ("choice", "ij,kj->ik"), "x": ("array", X), "y": ("array", X)}),
    "ops.softmax_cross_entropy": (ops.softmax_cross_entropy,
                                  {"logits": ("array", X), "labels": ("labels", (0, 2)), "axis": ("axis", 1)}),
    "ops.avg_pool2d": (ops.avg_pool2d, images | window),
    "ops.max_pool2d": (ops.max_pool2d, images | window),
    "ops.interpolate": (ops.interpolate, images | {"size": ("pair", 8), "mode": ("choice", "bilinear")}),
    "ops.conv2d": (ops.conv2d, images | {"w": ("array", FILTERS), "b": ("array or None", X[0, :2])} | convolution),
    "ops.conv2d, mask": (lambda mask: ops.conv2d(IMAGES, FILTERS, mask=mask),
                         {"mask": ("mask or None", np.eye(3) > 0)}),
    "ops.conv_transpose2d": (ops.conv_transpose2d, images | {"w": ("array", FILTERS), "b": ("array or None", X[0, :2])}
                             | convolution | {"output_padding": ("padding", 0)}),
    "ops.conv_filter_grad": (ops.conv_filter_grad, images | {"gy": ("array", IMAGES), "kernel_size": ("pair", 3),
                             "stride": ("pair", 1), "padding": ("padding", 1)}),
    "ops.lstm_scan": (ops.lstm_scan, {k: ("array", np.full(s, 0.1, np.float32)) for k, s in LSTM.items()}
                      | {"taps": ("taps", (0,))}),
    "ops.lstm_loop": (ops.lstm_loop, {k: ("array", np.full(s, 0.1, np.float32)) for k, s in LSTM.items()}
                      | {"taps": ("taps", (0,))}),
    "ops.lstm_scan, spans": (lambda spans: ops.lstm_scan(*map(np.zeros, LSTM.values()), (0,), spans),
                             {"spans": ("input or None", [(0, 1)] * 3)}),
    "Tensor": (Tensor, {"data": ("tensor", X), "requires_grad": ("flag", True)}),
    "Tensor.data": (lambda data: setattr(Tensor(X), "data", data), {"data": ("tensor", X)}),
    "Tensor <": (lambda y: Tensor(X) < y, {"y": ("array", X)}),
    "Tensor >=": (lambda y: Tensor(X) >= y, {"y": ("array", X)}),
    "Tensor.sum": (lambda axis: Tensor(X).sum(axis), {"axis": ("axes", 1)}),
    "grad": (lambda y, v: grad(y, y, v), {"y": (None, Tensor(X, True)), "v": ("gradient", X)}),
    "grad, flags": (lambda a, b: grad(Tensor(X, True).sum(), Tensor(X, True), None, a, b),
                    {"a": ("flag", True), "b": ("flag", True)}),
    "grad, outputs": (lambda y: grad(y, Tensor(X, True)), {"y": ("never", None)}),
    "grad, inputs": (lambda x: grad(Tensor(X, True).sum(), x), {"x": ("never", None)}),
    "gradcheck, what": (lambda fn, parameters: gradcheck(fn, X[0], parameters=parameters),
                        {"fn": ("function", ops.exp), "parameters": ("parameters", ())}),
    "Tensor.sum, keepdims": (lambda keepdims: Tensor(X).sum(1, keepdims), {"keepdims": ("keepdims", True)}),
    "Module.to": (lambda device: nn.LayerNorm(3).to(device), {"device": ("choice", "cpu")}),
    "gradcheck": (lambda x, order, rtol: gradcheck(ops.exp, x, order, rtol=rtol),
                  {"x": ("input", X[0]), "order": ("size", 1), "rtol": ("tolerance", 1e-6)}),
    "Tensor + y": (lambda y: Tensor(X) + y, {"y": ("array", X)}),
    "y - Tensor": (lambda y: y - Tensor(X), {"y": ("array", X)}),

    "nn.Linear": (nn.Linear, {"in_features": ("size", 3), "out_features": ("size", 2)} | drawn),
    "nn.Conv2d": (nn.Conv2d, layer | {"kernel_size": ("pair", 3)} | convolution | drawn),
    "nn.UpConv2d": (nn.UpConv2d, layer | {"kernel_size": ("pair", 3)} | convolution | drawn),
    "nn.MaskedConv2d": (nn.MaskedConv2d, {"mask": ("choice", "A"), "kernel_size": ("pair", 3), "groups": ("size", 3)}
                        | layer | drawn),
    "nn.Embedding": (nn.Embedding, {"count": ("size", 3), "size": ("size", 130)} | rng),
    "nn.Gate": (nn.Gate, {"channels": ("size", 130), "groups": ("size", 2), "classes": ("count", 2)}),
    "nn.VerticalStack": (nn.VerticalStack, {"in_channels": ("size", 1), "channels": ("size", 130),
                         "layers": ("size", 2),
                         "first_kernel": ("odd", 3), "kernel": ("odd", 3), "classes": ("count", 2)} | rng),
    "nn.LSTM": (nn.LSTM, {"in_features": ("size", 2), "hidden": ("size", 65)} | rng),
    "nn.RowLSTM": (nn.RowLSTM, {"channels": ("size", 65), "hidden": ("size", 65), "groups": ("size", 5)} | rng),
    "nn.DiagonalBiLSTM": (nn.DiagonalBiLSTM,
                          {"channels": ("size", 65), "hidden": ("size", 65), "groups": ("size", 5)} | rng),
    "nn.CausalSelfAttention": (nn.CausalSelfAttention, {"channels": ("size", 130), "heads": ("size", 2),
                                                        "gain": ("positive", 0.5)} | rng),
    "nn.LayerNorm": (nn.LayerNorm, {"channels": ("size", 3)}),
    "nn.ChannelNorm": (nn.ChannelNorm, {"channels": ("size", 3)}),
    "nn.GroupNorm": (nn.GroupNorm, {"groups": ("size", 2), "channels": ("size", 4)}),
    "nn.BatchNorm": (nn.BatchNorm, {"channels": ("size", 3)}),
    "nn.Dropout": (nn.Dropout, {"p": ("chance", 0.5)}),
    "nn.Sequential": (lambda step: nn.Sequential(ops.relu, step), {"step": ("step", ops.relu)}),

    "Linear.forward": (lambda x: nn.Linear(3, 2, rng=new())(x), x),
    "Conv2d.forward": (lambda x: nn.Conv2d(2, 2, 3, rng=new())(x), images),
    "UpConv2d.forward": (lambda x, size: nn.UpConv2d(2, 2, 3, 2, rng=new())(x, size),
                         images | {"size": ("pair or None", 9)}),
    "MaskedConv2d.forward": (lambda x: nn.MaskedConv2d("B", 2, 2, 3, rng=new())(x), images),
    "Embedding.forward": (lambda x: nn.Embedding(3, 2, rng=new())(x), {"x": ("index", (0, 2))}),
    "Gate.forward": (lambda x, labels: gate(2)(x, labels), images | {"labels": ("labels", (1, 0))}),
    "Gate.forward, no classes": (lambda x, labels: gate(0)(x, labels), images | {"labels": ("forbidden", None)}),
    "VerticalStack.forward": (lambda x, labels: nn.VerticalStack(2, 2, 2, 3, 3, 2, rng=new())(x, labels),
                              images | {"labels": ("labels", (1, 0))}),
    "LSTM.forward": (lambda x, h, c: nn.LSTM(3, 2, rng=new())(x, (h, c)), {"x": ("array", np.stack([X, X])),
                     "h": ("array", SQUARE), "c": ("array", SQUARE)}),
    "LSTM.forward, state": (lambda x, s: nn.LSTM(3, 2, rng=new())(x, s), {"x": (None, np.stack([X, X])),
                            "s": ("state", None)}),
    "RowLSTM.forward": (lambda x: nn.RowLSTM(2, 2, rng=new())(x), images),
    "DiagonalBiLSTM.forward": (lambda x: nn.DiagonalBiLSTM(2, 2, rng=new())(x), images),
    "Sequential.forward": (lambda x, rng: nn.Sequential(nn.Linear(3, 2, rng=new()), nn.Dropout(0.5))(x, rng),
                           x | {"rng": ("optional rng", RNG)}),
    "CausalSelfAttention.forward": (lambda x: nn.CausalSelfAttention(2, 1, rng=new())(x), images),
    "ChannelNorm.forward": (lambda x: nn.ChannelNorm(2)(x), images),
    "LayerNorm.forward": (lambda x: nn.LayerNorm(3)(x), x),
    "GroupNorm.forward": (lambda x: nn.GroupNorm(1, 2)(x), images),
    "BatchNorm.forward": (lambda x: nn.BatchNorm(2)(x, training=True), images),

    "Gaussian": (Gaussian, {"mean": ("array", X), "log_var": ("array", X)}),
    "Gaussian.log_prob": (lambda x: Gaussian(Tensor(X), Tensor(X)).log_prob(x), x),
    "Gaussian.rsample": (lambda rng: Gaussian(X, X).rsample(rng), rng),
    "Gaussian.kl": (lambda other: Gaussian(X, X).kl(other), {"other": ("distribution", None)}),
    "Bernoulli": (lambda logits: Bernoulli(logits).mean, {"logits": ("array", X)}),
    "Bernoulli.log_prob": (lambda x: Bernoulli(Tensor(X)).log_prob(x), {"x": ("binary", (X > 1) * 1.0)}),
    "Bernoulli.sample": (lambda rng: Bernoulli(X).sample(rng), rng),
    "Bernoulli.at": (lambda u: Bernoulli(X).at(u), {"u": ("array", X / 3)}),
    "Categorical": (lambda logits, axis: Categorical(logits, axis).sample(new()),
                    {"logits": ("array", X), "axis": ("axis", 1)}),
    "Categorical.log_prob": (lambda x: Categorical(Tensor(X)).log_prob(x), {"x": ("labels", (0, 2))}),
    "Categorical.sample": (lambda rng: Categorical(X).sample(rng), rng),
    "Categorical.at": (lambda u: Categorical(X).at(u), {"u": ("array", X[:, 0])}),
    "OneHot": (lambda logits: OneHot(logits).kl(), {"logits": ("array", X)}),
    "OneHot.log_prob": (lambda z: OneHot(X).log_prob(z), {"z": ("array", X)}),
    "OneHot.sample": (lambda rng: OneHot(X).sample(rng), rng),
    "OneHot.rsample": (OneHot(X).rsample, {"temperature": ("temperature", 0.5), "straight_through": ("flag", True)}
                       | rng),
    "GaussianMixture": (lambda logits: GaussianMixture(logits, Gaussian(X, X)).weights, {"logits": ("array", X[:, 0])}),
    "GaussianMixture, components": (lambda components: GaussianMixture(X[:, 0], components),
                                    {"components": ("distribution or None", Gaussian(X, X))}),
    "GaussianMixture.log_prob": (lambda z: GaussianMixture(X[:, 0], Gaussian(X, X)).log_prob(z),
                                 {"z": ("array", X[0])}),
    "GaussianMixture.sample": (lambda rng: GaussianMixture(X[:, 0], Gaussian(X, X)).sample(rng), rng),
    "LogisticMixture": (LogisticMixture, {"logits": ("array", X), "means": ("array", X[None]),
                                          "log_scales": ("array", X[None]), "coefficients": (None, None),
                                          "levels": ("levels", 4)}),
    "LogisticMixture, coefficients": (lambda coefficients: LogisticMixture(X, FILTERS[:, 0, :2], FILTERS[:, 1, :2],
                                                                           coefficients, 4).log_prob(COLOURS),
                                      {"coefficients": ("array", X[None])}),
    "LogisticMixture.log_prob": (lambda x: logistics().log_prob(x), {"x": ("values", COLOURS)}),
    "LogisticMixture.given": (lambda x, colour: logistics().given(x, colour),
                              {"x": ("values", COLOURS), "colour": ("position", 1)}),
    "LogisticMixture.at": (lambda u: LogisticMixture(X, X[None], X[None], None, 4).at(u),
                           {"u": ("array", X[0] / 3)}),

    "binarize_static": (data.binarize_static, {"images": ("grey", BINARY), "seed": ("count", 3)}),
    "binarize_dynamic": (data.binarize_dynamic, {"images": ("grey", BINARY)} | rng),
    "binarize_threshold": (data.binarize_threshold, {"images": ("grey", BINARY), "threshold": ("chance", 0.5)}),
    "bits_per_dim": (bits_per_dim, {"nats": ("nats", 80.0), "image_shape": ("image_shape", (1, 4, 4))}),
}  # fmt: skip
common = {
    "image_shape": ("image_shape", (1, 4, 4)),
    "levels": ("levels", 4),
    "channels": ("size", 3),
    "first_kernel": ("odd", 3),
}
SOLVED = {k: (None, v) for k, v in {"f": lambda t, y: (y,), "y": (Tensor(X),), "start": 0, "stop": 1}.items()}
flow = {"image_shape": ("image_shape", (1, 4, 4)), "levels": ("levels or None", 4), "hidden": ("size", 3)}
CALLS |= {
    "dopri5": (dopri5, {"rtol": ("positive", 0.1), "atol": ("tolerance", 0.1)} | SOLVED),
    "Mixture.sample": (DENSITIES["two moons"].sample, {"n": ("size", 2)} | rng),
    "Checkerboard.sample": (DENSITIES["checkerboard"].sample, {"n": ("size", 2)} | rng),
    "PixelCNN": (PixelCNN, common | {"blocks": ("count", 1), "kernel": ("odd", 3), "dropout": ("chance", 0.5)} | rng),
    "PixelRNN": (PixelRNN, {"kind": ("choice", "row")} | common
                 | {"layers": ("count", 1), "dropout": ("chance", 0.5)} | rng),
    "GatedPixelCNN": (GatedPixelCNN, common | {"layers": ("count", 1), "kernel": ("odd", 3), "classes": ("count", 2)}
                      | rng),
    "PixelTransformer": (PixelTransformer, common | {"blocks": ("count", 1), "heads": ("size", 3), "kernel": ("odd", 3),
                                                     "dropout": ("chance", 0.5), "classes": ("count", 2)} | rng),
    "PixelCNNpp": (PixelCNNpp, {k: v for k, v in common.items() if k != "channels"}
                   | {"channels": ("channels", (2, 3)), "blocks": ("size", 1), "components": ("size", 3),
                      "kernel": ("odd", 3), "dropout": ("chance", 0.5), "classes": ("count", 2)} | rng),
    "NICE": (NICE, flow | {"couplings": ("size", 2), "layers": ("count", 1)} | rng),
    "RealNVP": (RealNVP, flow | {"scales": ("size", 2), "couplings": ("size", 2), "blocks": ("count", 1)} | rng),
    "Glow": (Glow, flow | {"scales": ("size", 2), "steps": ("size", 2), "blocks": ("count", 1)} | rng),
    "FFJORD": (FFJORD, {k: flow[k] for k in ("image_shape", "levels")}
               | {"hidden": ("channels", (2, 3)), "steps": ("size", 2), "trace": ("choice", "exact"),
                  "smooth": ("positive", 0.1), "rtol": ("fraction", 0.1)} | rng),
    "RBM": (RBM, {"image_shape": ("image_shape", (1, 4, 4)), "hidden": ("size", 3), "steps": ("size", 2),
                  "chains": ("count", 4)} | rng),
    "VAE": (VAE, {"image_shape": ("image_shape", (1, 4, 4)), "latent": ("size", 130), "beta": ("positive", 0.5)}
            | {"likelihood": ("choice", "gaussian"), "channels": ("channels", (2, 3)), "blocks": ("count", 1)}
            | {"samples": ("size", 2), "classes": ("count", 2)} | rng),
    "MixturePriorVAE": (MixturePriorVAE, {"latent": (None, 2), "components": ("size", 3), "kind": ("choice", "vamp")}
                        | rng),
    "MixturePosteriorVAE": (MixturePosteriorVAE, {"latent": (None, 2), "components": ("size", 3)} | rng),
    "CategoricalVAE": (CategoricalVAE, {"variables": ("size", 2), "values": ("levels", 3), "straight_through":
                                        ("flag", True), "temperature": ("temperature", 0.5)} | rng),
    "Diffusion": (Diffusion, {"image_shape": common["image_shape"], "levels": ("levels", 4), "steps": ("size", 3)}
                  | {"schedule": ("choice", "cosine"), "channels": ("channels", (2, 3)), "classes": ("count", 2)}
                  | rng),
    "TCVAE": (TCVAE, {"image_shape": ("image_shape", (1, 4, 4)), "latent": ("size", 130), "beta": ("positive", 0.5)}
              | {"images": ("levels", 50), "channels": ("channels", (2, 3)), "blocks": ("count", 1)} | rng),
    "Autoencoder": (Autoencoder, {"image_shape": ("image_shape", (1, 4, 4)), "code": ("size", 2),
                                  "channels": ("channels", (2, 3))} | rng),
    "FVSBN": (FVSBN, {"image_shape": common["image_shape"], "levels": ("levels", 4),
                      "order": ("choice", "random")} | rng),
    "NADE": (NADE, {"image_shape": common["image_shape"], "levels": ("levels", 4), "hidden": ("size", 3)} | rng),
    "MADE": (MADE, {"image_shape": common["image_shape"], "levels": ("levels", 4), "hidden": ("channels", (3, 4)),
                    "orders": ("size", 2), "order": ("choice", "random")} | rng),
    "PCA": (PCA, {"images": ("images", IMAGES), "code": ("size", 2)}),
    "mutual_information": (mutual_information,
                           {"codes": ("input", X), "factors": ("input", [[0], [1]]), "bins": ("levels", 2)}),
    "GAN": (GAN, {"image_shape": ("image_shape", (1, 4, 4)), "latent": ("size", 130), "channels": ("channels", (2, 3)),
                  "form": ("choice", "wasserstein")} | rng),
    "GSN": (GSN, {"image_shape": ("image_shape", (1, 4, 4)), "hidden": ("channels", (2, 3)), "noise": ("fraction", 0.5),
                  "walkback": ("size", 2)} | rng),
    "parzen": (parzen, {"samples": ("array", X), "points": ("array", X), "sigma": ("tolerance", 0.5)}),
    "frechet_distance": (frechet_distance, {"features_a": ("array", X), "features_b": ("array", X)}),
    "nearest_distances": (nearest_distances, {"samples": ("array", X), "images": ("array", X)}),
}  # fmt: skip
SHAPE = (1, 4, 4)
MODELS = {
    "PixelCNN": lambda: PixelCNN(SHAPE, channels=2, blocks=1, first_kernel=3, dropout=0.5, rng=new()),
    "PixelRNN": lambda: PixelRNN("row", SHAPE, channels=2, layers=1, first_kernel=3, rng=new()),
    "GatedPixelCNN": lambda: GatedPixelCNN(SHAPE, channels=2, layers=1, first_kernel=3, classes=3, rng=new()),
    "PixelTransformer": lambda: PixelTransformer(SHAPE, channels=2, blocks=1, first_kernel=3, rng=new()),
    "PixelCNNpp": lambda: PixelCNNpp(SHAPE, 2, (2, 2), 1, 2, first_kernel=3, dropout=0.5, rng=new()),
    "FVSBN": lambda: FVSBN(SHAPE, rng=new()),
    "NADE": lambda: NADE(SHAPE, hidden=3, rng=new()),
    "MADE": lambda: MADE(SHAPE, hidden=(3,), rng=new()),
    "RBM": lambda: RBM(SHAPE, hidden=2, rng=new()),
    "VAE": lambda: VAE(SHAPE, latent=2, channels=(2,), rng=new()),
    "VAE, gaussian": lambda: VAE(SHAPE, latent=2, likelihood="gaussian", channels=(2,), rng=new()),
    "VAE, prior": lambda: MixturePriorVAE(SHAPE, latent=2, channels=(2,), rng=new()),
    "VAE, posterior": lambda: MixturePosteriorVAE(SHAPE, latent=2, channels=(2,), rng=new()),
    "VAE, categorical": lambda: CategoricalVAE(SHAPE, variables=1, values=2, channels=(2,), rng=new()),
    "VAE, classes": lambda: VAE(SHAPE, latent=2, channels=(2,), classes=3, rng=new()),
    "TCVAE": lambda: TCVAE(SHAPE, latent=2, images=50, channels=(2,), rng=new()),
    "Autoencoder": lambda: Autoencoder(SHAPE, code=2, channels=(2,), rng=new()),
    "Diffusion": lambda: Diffusion(SHAPE, 2, steps=3, channels=(2,), classes=3, rng=new()),
    "PCA": lambda: PCA(IMAGES[:, :1], 2),
    "RealNVP": lambda: RealNVP(SHAPE, 2, couplings=1, hidden=2, rng=new()),
    "FFJORD": lambda: FFJORD(SHAPE, 2, (2,), rng=new()),
    "GAN": lambda: GAN(SHAPE, 2, "wasserstein", channels=(2,), rng=new()),
    "GSN": lambda: GSN(SHAPE, (2,), rng=new()),
}
CODES = np.array([[0.5, -0.5], [1.0, 2.0]], np.float32)


def new():
    return np.random.default_rng(0)


def logistics():
    return LogisticMixture(X, FILTERS[:, 0, :2], FILTERS[:, 1, :2], X[None], 4)


def gate(classes):
    return nn.Gate(1, classes=classes)


def method(build, name):
    return lambda **given: getattr(build(), name)(**given)


for name, build in MODELS.items():
    called = functools.partial(method, build)
    grey = "VAE, gaussian", "Autoencoder", "GAN", "GSN"
    kind = "grey images" if name in grey else "images" if name == "PCA" else "binary images"
    batch, draws = {"x": (kind, BINARY)}, {"n": ("size", 2)} | rng
    if name in ("RealNVP", "FFJORD"):
        CALLS |= {f"{name}.{m}": (called(m), batch | rng) for m in ("bound", "loss")}
        CALLS[f"{name}.decode"] = called("decode"), {"z": ("array", np.zeros((2, 16), np.float32))}
        CALLS[f"{name}.sample"] = called("sample"), draws | {"temperature": ("temperature", 0.5)}
    elif name == "Diffusion":
        labels = {"labels": ("labels", (2, 0))}
        CALLS |= {f"{name}.{m}": (called(m), batch | rng | labels) for m in ("bound", "loss", "score")}
        CALLS[f"{name}.kl"] = called("kl"), batch | {"t": ("step t", (3, 1))} | rng | labels
        CALLS[f"{name}.sample"] = (
            called("sample"),
            draws | labels | {"steps": ("size or None", 2), "eta": ("chance", 0.5), "guidance": ("positive", 0.5)},
        )
    elif name in ("GAN", "GSN"):
        CALLS[f"{name}.loss"] = called("loss"), batch | rng | {"labels": ("forbidden", None)}
        CALLS[f"{name}.sample"] = called("sample"), draws | {"labels": ("forbidden", None)}
        if name == "GAN":
            CALLS["GAN.decode"] = called("decode"), {"z": ("array", CODES)}
        else:
            keep = {"mask": ("keep", BINARY > 0), "steps": ("size", 2)}
            CALLS["GSN.complete"] = called("complete"), batch | rng | keep
            CALLS["GSN.chain"] = (
                lambda **given: list(GSN(SHAPE, (2,), rng=new()).chain(**given)),
                batch | rng | keep | {"mask": ("keep or None", BINARY > 0)},
            )
            CALLS["GSN.sample_means"] = called("sample_means"), draws | {"steps": ("size", 2)}
            CALLS |= {f"GSN.{m}": (called(m), batch | rng) for m in ("score", "corrupt")}
    elif name.startswith(("Pixel", "Gated", "FVSBN", "NADE", "MADE")):
        labels = {"labels": ("labels", (2, 0)) if name == "GatedPixelCNN" else ("forbidden", None)}
        batch |= labels
        CALLS |= {f"{name}.{m}": (called(m), batch) for m in ("logits", "log_prob")}
        CALLS[f"{name}.loss"] = called("loss"), batch | {"rng": ("optional rng", RNG)}
        CALLS[f"{name}.sample"] = called("sample"), draws | labels | {"temperature": ("temperature", 0.5)}
        CALLS[f"{name}.sample, given"] = (
            called("sample"),
            {
                **{
                    "n": (None, 2),
                    "rng": (None, RNG),
                    "given": ("binary images", BINARY),
                    "mask": ("keep", BINARY > 0),
                },
                "labels": (None, labels["labels"][1]),
            },
        )
    else:
        labels = {"labels": ("labels", (2, 0))} if "classes" in name else {}
        batch, draws = batch | labels, draws | labels
        CALLS |= {f"{name}.{m}": (called(m), batch) for m in ("encode", "reconstruct")}
        code = "z" if "VAE" in name else "h" if name == "RBM" else "code"
        CALLS[f"{name}.decode"] = called("decode"), {code: ("array", CODES)} | labels
    if "VAE" in name:
        CALLS |= {f"{name}.{m}": (called(m), batch | rng) for m in ("bound", "score", "loss")}
        CALLS[f"{name}.sample"] = called("sample"), draws
        CALLS[f"{name}.log_likelihood"] = called("log_likelihood"), batch | rng | {"samples": ("size", 3)}
    if name == "RBM":
        CALLS |= {f"{name}.{m}": (called(m), batch) for m in ("free_energy", "log_prob")}
        CALLS |= {f"{name}.{m}": (called(m), batch | rng) for m in ("score", "loss")}
        CALLS[f"{name}.sample"] = called("sample"), draws | {"rounds": ("count", 2)}
        CALLS[f"{name}.complete"] = (
            called("complete"),
            batch | rng | {"mask": ("keep", BINARY > 0), "rounds": ("size", 2)},
        )
        annealing = {"temperatures": ("size", 3), "chains": ("levels", 3), "samples": ("binary images or None", BINARY)}
        CALLS[f"{name}.log_z"] = called("log_z"), rng | annealing
    if name == "TCVAE":
        CALLS[f"{name}.parts"] = called("parts"), batch | rng
    if name == "Autoencoder":
        CALLS[f"{name}.loss"] = called("loss"), batch

SAME |= {
    "odd": whole, "levels": whole, "temperature": real, "index": SAME["labels"],
    "binary images": SAME["images"], "grey images": SAME["images"],
    "keep": lambda m: [m.tolist()],
}  # fmt: skip

ARGUMENTS = [(name, argument) for name, (_, arguments) in CALLS.items() for argument, (k, _) in arguments.items() if k]


def call(name, **changed):
    function, arguments = CALLS[name]
    given = {argument: right for argument, (_, right) in arguments.items()} | changed
    return function(**{k: new() if v is RNG else v for k, v in given.items()})


def values(result):
    """All numbers of a result, as a list of arrays."""
    if isinstance(result, nn.Module):
        return list(result.state_dict().values())
    if isinstance(result, Tensor):
        return [result.numpy()]
    if isinstance(result, PCA):
        return [result.mean, result.directions]
    if is_dataclass(result):
        result = tuple(vars(result).values())
    if isinstance(result, tuple | list):
        return [array for part in result for array in values(part)]
    return [] if result is None else [np.asarray(result)]


def complaint(name, argument, value):
    """What is wrong with the response to a wrong value: None if it is refused in a sentence of our own."""
    try:
        result = call(name, **{argument: value})
    except (ValueError, TypeError, IndexError) as error:
        return f"{type(error).__name__}: {error}" if OWN_WORDS.search(str(error)) or len(str(error)) < 15 else None
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"accepted: {str(result)[:60]}"


@pytest.mark.parametrize("name, argument", ARGUMENTS)
def test_what_is_wrong_is_refused_in_a_sentence(name, argument):
    kind = CALLS[name][1][argument][0]
    wrong = WRONG[kind.removesuffix(" or None")]
    wrong = [x for x in wrong if x is not None] if kind.endswith(" or None") else wrong
    found = [f"{argument}={value!r}: {why}" for value in wrong if (why := complaint(name, argument, value))]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize("name, argument", [a for a in ARGUMENTS if CALLS[a[0]][1][a[1]][0].split(" or ")[0] in SAME])
def test_what_is_the_same_gives_the_same(name, argument):
    kind, right = CALLS[name][1][argument]
    wanted = values(call(name))
    for value in SAME[kind.removesuffix(" or None")](right):
        got = values(call(name, **{argument: value}))
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=f"{argument}={value!r}")


def poisoned(build):
    model = build()
    for p in model.parameters():
        p.data = np.full(p.shape, np.nan, np.float32)
    return model


LEVELS = np.full((1, *SHAPE), 255, np.uint8)
SILENT = {  # what would give a wrong result without a word
    "nan, Bernoulli": (lambda: Bernoulli(X * np.nan).sample(new()), "logits: some are nan"),
    "nan, Categorical": (lambda: Categorical(X * np.nan).sample(new()), "probabilities: some are nan"),
    "nan, PixelCNN": (lambda: poisoned(MODELS["PixelCNN"]).sample(2, new()), "logits: some are nan"),
    "nan, PixelCNNpp": (lambda: poisoned(MODELS["PixelCNNpp"]).sample(2, new()), "parameters: some are nan"),
    "nan, PixelRNN": (lambda: poisoned(MODELS["PixelRNN"]).sample(2, new()), "logits: some are nan"),
    "limits": (lambda: ops.clip(X, 2, 1), r"clip: high: got 1"),
    "numbers of a list": (lambda: Tensor(X) + ["1", "2", "3"], "Add: an input is list of dtype <U1, needs real"),
    "number as a word": (lambda: ops.pad(X, [(1, 1), (0, 0)], "3"), "pad: value: got '3'"),
    "dtype left out": (lambda: ops.astype(X, None), "astype: dtype is None, needs a floating one"),
    "left out": (lambda: gate(2)(IMAGES), "labels: got none"),
    "last class": (lambda: gate(2)(IMAGES, [0, -1]), "labels: got -1 to 0"),
    "another batch": (lambda: nn.LSTM(3, 2, rng=new())(np.ones((1, 4, 3), np.float32), (SQUARE, SQUARE)),
                      r"state has shape \(2, 2\)"),
    "grey, autoencoder": (lambda: MODELS["Autoencoder"]().loss(LEVELS), "uint8 up to 255, .*: divide by 255"),
    "grey, VAE": (lambda: MODELS["VAE, gaussian"]().loss(LEVELS, new()), "uint8 up to 255, .*: divide by 255"),
    "grey, 4 levels": (lambda: PixelCNN(SHAPE, 4, rng=new()).loss(LEVELS), "images // 64"),
    "grey, 3 levels": (lambda: PixelCNN(SHAPE, 3, channels=3, rng=new()).loss(LEVELS), "images // 86"),
    "a torch tensor": (lambda: Tensor(Torchlike()), r"data is .*Torchlike"),
}  # fmt: skip


@pytest.mark.parametrize("call, message", SILENT.values(), ids=SILENT)
def test_what_would_go_wrong_in_silence_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


UNSIGNED = ["sigmoid", "softplus", "softmax", "log_softmax", "logsumexp"]


@pytest.mark.parametrize("name", UNSIGNED)
def test_unsigned_numbers_do_not_wrap_around(name):
    x = np.array([[0, 5], [200, 1]], np.uint8)
    np.testing.assert_allclose(getattr(ops, name)(x).data, getattr(ops, name)(x.astype(float)).data, rtol=1e-6)
    labels, targets = np.array([0, 1]), np.eye(2)
    for loss, t in (ops.softmax_cross_entropy, labels), (ops.bce_with_logits, targets):
        np.testing.assert_allclose(loss(x, t).data, loss(x.astype(float), t).data, rtol=1e-6)


def test_float_lists_beside_float64_keep_their_digits():
    assert (Tensor(np.zeros(2)) + [0.1, 0.2]).data.tolist() == [0.1, 0.2]


def test_every_operation_is_called():
    missing = {name for name, f in vars(ops).items() if callable(f) and not name.startswith("_")}
    missing -= {name.split(",")[0].removeprefix("ops.") for name in CALLS} | {"Tensor"}
    assert not missing
