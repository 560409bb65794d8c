"""Numerically stable losses on logits, in nats per element; the caller sums or averages them."""

import numpy as np

from tinygen import check
from tinygen.backend import xp
from tinygen.ops.elementwise import Binary, sigmoid
from tinygen.ops.reduce import largest, softmax
from tinygen.tensor import Op, Tensor, as_tensor


class BceWithLogits(Binary):
    saves = ("inputs",)

    def forward(self, x, t):
        if x.shape != t.shape and (shape := np.broadcast_shapes(x.shape, t.shape)) not in (x.shape, t.shape):
            raise ValueError(
                f"logits {x.shape} and targets {t.shape} would give losses of shape {shape}, not of one of these"
            )
        # In this order max(x, 0) - x t can cancel exactly before the small last term is added.
        return xp(x, t).maximum(x, 0) - x * t + xp(x).log1p(xp(x).exp(0.0 - xp(x).abs(x)))

    def dx(self, gy, x, t):
        return gy * (sigmoid(x) - t)

    def dy(self, gy, x, t):
        return -gy * x


class SoftmaxCrossEntropy(Op):
    saves = ("inputs",)

    def __init__(self, labels, axis):
        self.axis = axis
        self.labels = xp(labels).expand_dims(labels, axis)  # of size 1 along axis, to broadcast with the logits

    def forward(self, x):
        shifted = x - largest(x, self.axis)
        picked = xp(x, self.labels).take_along_axis(shifted, self.labels, axis=self.axis)
        return (xp(x).log(xp(x).exp(shifted).sum(axis=self.axis, keepdims=True)) - picked).squeeze(self.axis)

    def backward(self, gy):
        x = self.inputs[0]
        shape = [1] * x.ndim
        shape[self.axis] = x.shape[self.axis]
        one_hot = self.labels == xp(x.data).arange(x.shape[self.axis]).reshape(shape)
        gy = gy.reshape(self.labels.shape)
        return gy * (softmax(x, self.axis) - Tensor(one_hot))


def bce_with_logits(logits, targets) -> Tensor:
    """-log Bernoulli(targets | sigmoid(logits)) = softplus(x) - x t, elementwise: finite at any finite logit.

    Raises ValueError where the broadcast shape is neither that of the logits nor that of the targets.
    """
    return BceWithLogits()(logits, targets)


def softmax_cross_entropy(logits, labels, axis: int = 1) -> Tensor:
    """-log softmax(logits)[label]: logits with K classes along ``axis``, integer labels without that axis.

    The result has the shape of the labels. Labels outside 0..K-1 raise ValueError, but on the host only: checking them
    on a device would wait for it.
    """
    logits = as_tensor(logits, "softmax_cross_entropy: logits")
    axis = check.axis("softmax_cross_entropy", axis, logits.ndim)
    expected = logits.shape[:axis] + logits.shape[axis + 1 :]
    labels = check.labels("softmax_cross_entropy: labels", labels, logits.shape[axis], expected)
    return SoftmaxCrossEntropy(labels.astype("int64"), axis)(logits)
