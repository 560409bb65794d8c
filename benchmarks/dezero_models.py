"""The convolutional models in DeZero, on a flat list of weights in the order of tinygen's layers.

Constants are float32 and squares are products: with NumPy 2, DeZero's own scalars would turn everything into float64.
"""

import numpy as np

np.int = int  # noqa: NPY001 (DeZero 0.0.13 uses this name, which NumPy has dropped)

import dezero.functions as F  # noqa: E402
from dezero import Parameter  # noqa: E402
from dezero.optimizers import Adam  # noqa: E402
from pytorch_models import mask  # noqa: E402


class Weights(list):
    """A list of weights that DeZero's optimizer accepts as a model."""

    def params(self):
        return self


def trainer(loss, weights, x):
    """``run(n)``: n training steps; ``gradients()``: loss and gradients, as for PyTorch."""
    weights = Weights(Parameter(w.copy()) for w in weights)
    adam = Adam(1e-4).setup(weights)

    def gradients():
        for w in weights:
            w.cleargrad()
        value = loss(iter(weights), x)
        value.backward()
        return float(value.data), [w.grad.data for w in weights]

    def run(n):
        for _ in range(n):
            gradients()
            adam.update()

    return run, gradients


def masked(kind, w, x):
    weight, bias = next(w), next(w)
    kh, kw = weight.shape[2:]
    return F.conv2d(x, weight * mask(kind, kh, kw), bias, pad=(kh // 2, kw // 2))


def pointwise(w, x):
    return F.conv2d(x, next(w), next(w))


def pixelcnn(w, x, blocks=7):
    h = masked("A", w, 2 * x - 1)
    for _ in range(blocks):
        y = masked("B", w, F.relu(pointwise(w, F.relu(h))))
        h = h + pointwise(w, F.relu(y))
    logits = pointwise(w, F.relu(pointwise(w, F.relu(h))))
    # -log sigmoid(logits) where x = 1, -log sigmoid(-logits) where x = 0
    return F.sum(F.log(F.exp(logits * (1 - 2 * x)) + np.float32(1))) / np.float32(len(x))


def linear(w, x):
    return F.linear(x, next(w).T, next(w))


def autoencoder(w, x, sizes=(4, 7, 14, 28)):
    h = x
    for _ in range(4):
        h = F.relu(F.conv2d(h, next(w), next(w), stride=2, pad=1))
    code = linear(w, h.reshape(len(x), -1))
    h = linear(w, code).reshape(len(x), -1, 2, 2)
    for size in sizes:
        h = F.deconv2d(F.relu(h), next(w), next(w), stride=2, pad=1, outsize=(size, size))
    difference = h - x
    return F.sum(difference * difference) / np.float32(len(x))
