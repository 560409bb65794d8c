"""PixelCNN in HIPS autograd, on a flat list of weights in the order of tinygen's layers.

Its only convolution is ``autograd.scipy.signal.convolve``, without stride; 1x1 is a matrix product for each image.
"""

import autograd.numpy as np
from autograd import value_and_grad
from autograd.scipy.signal import convolve
from pytorch_models import mask


def trainer(loss, weights, x):
    """``run(n)``: n training steps; ``gradients()``: loss and gradients, as for PyTorch."""
    weights = [w.copy() for w in weights]
    means, squares = ([np.zeros_like(w) for w in weights] for _ in range(2))
    loss_and_gradients = value_and_grad(lambda weights: loss(iter(weights), x))
    steps = 0

    def gradients():
        return loss_and_gradients(weights)

    def run(n):
        nonlocal steps
        for _ in range(n):
            steps += 1
            for w, m, v, g in zip(weights, means, squares, gradients()[1]):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                w -= 1e-4 * m / (1 - 0.9**steps) / (np.sqrt(v / (1 - 0.999**steps)) + 1e-8)

    return run, gradients


def masked(kind, w, x):
    weight, bias = next(w), next(w)
    kh, kw = weight.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2)), "constant")
    turned = (weight * mask(kind, kh, kw))[:, :, ::-1, ::-1]  # convolve rotates the filters back
    return convolve(x, turned, axes=([2, 3], [2, 3]), dot_axes=([1], [1]), mode="valid") + bias[:, None, None]


def pointwise(w, x):
    y = next(w)[:, :, 0, 0] @ x.reshape(*x.shape[:2], -1)
    return y.reshape(len(x), -1, *x.shape[2:]) + next(w)[:, None, None]


def relu(x):
    return np.maximum(x, 0)


def pixelcnn(w, x, blocks=7):
    h = masked("A", w, 2 * x - 1)
    for _ in range(blocks):
        y = masked("B", w, relu(pointwise(w, relu(h))))
        h = h + pointwise(w, relu(y))
    logits = pointwise(w, relu(pointwise(w, relu(h))))
    return np.sum(np.logaddexp(0, logits * (1 - 2 * x))) / len(x)
