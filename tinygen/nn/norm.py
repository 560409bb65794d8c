"""Normalization to mean 0 and variance 1 over some axes, then a learned scale and shift for each channel."""

import math

import numpy as np

from tinygen import check, ops
from tinygen.nn.module import Buffer, Module, Parameter

EPS = 1e-5  # added to the variance, as in PyTorch


class Norm(Module):
    """The base class: it owns ``weight`` and ``bias``, both (channels,), the channels being along ``axis``."""

    axis = 1

    def __init__(self, channels: int):
        channels = check.count(f"{type(self).__name__}: channels", channels)
        self.weight = Parameter(np.ones(channels, np.float32))
        self.bias = Parameter(np.zeros(channels, np.float32))

    def along_axis(self, x, *vectors):
        """Vectors (channels,) reshaped to broadcast along ``axis`` of x."""
        channels = self.weight.shape[0]
        after = 0 if self.axis == -1 else x.ndim - 2
        return [v.reshape(channels, *[1] * after) for v in vectors]

    def describe(self):
        return str(self.weight.shape[0])


def normalized(x, axis):
    """(x - mean) / sqrt(variance + eps), both over ``axis``."""
    return (x - x.mean(axis, keepdims=True)) / ops.sqrt(x.var(axis, keepdims=True) + EPS)


class LayerNorm(Norm):
    """Normalizes over the last axis: (..., size) -> the same. Source: Ba et al. 2016 (arXiv 1607.06450)."""

    axis = -1

    def forward(self, x):
        x = check.tensor("LayerNorm: x", x, ..., self.weight.size)
        weight, bias = self.along_axis(x, self.weight, self.bias)
        return normalized(x, -1) * weight + bias


class ChannelNorm(Norm):
    """``LayerNorm`` over the channels of images: (N, channels, ...) -> the same, each pixel by itself.

    No pixel sees another one, so it may stand between masked convolutions.
    """

    def forward(self, x):
        x = check.tensor("ChannelNorm: x", x, "N", self.weight.size, ...)
        weight, bias = self.along_axis(x, self.weight, self.bias)
        return normalized(x, 1) * weight + bias

    def one_pixel(self, at):
        """The function (channels, N) -> (channels, N) at a pixel."""
        weight, bias, n = self.weight.data[:, None], self.bias.data[:, None], self.weight.size

        def normalize(x):
            x = x - x.sum(0) / n
            return x * (weight / ((x * x).sum(0) / n + EPS) ** 0.5) + bias

        return normalize


class GroupNorm(Norm):
    """Normalizes each image over the channels of a group and all positions: (N, channels, ...) -> the same.

    Raises ValueError where ``groups`` does not divide the channels. Source: Wu and He 2018 (arXiv 1803.08494).
    """

    def __init__(self, groups: int, channels: int):
        super().__init__(channels)
        self.groups = check.count("GroupNorm: groups", groups)
        if channels % self.groups:
            raise ValueError(f"GroupNorm: {groups} groups must divide {channels} channels")

    def forward(self, x):
        x = check.tensor("GroupNorm: x", x, "N", self.weight.size, ...)
        weight, bias = self.along_axis(x, self.weight, self.bias)
        y = normalized(x.reshape(x.shape[0], self.groups, math.prod(x.shape[1:]) // self.groups), -1)
        return y.reshape(x.shape) * weight + bias

    def describe(self):
        return f"{self.groups}, {self.weight.shape[0]}"


class BatchNorm(Norm):
    """Normalizes each channel over all images and positions: (N, channels, ...) -> the same.

    With ``training=True`` it uses the mean and variance of x and updates the running averages, the buffers
    ``running_mean`` and ``running_var`` (momentum 0.1, the variance unbiased, as in PyTorch); otherwise it uses the
    running averages. In ``fit`` x is one shard of a batch.
    Raises ValueError for training with one value per channel, which has no variance.
    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167).
    """

    momentum = 0.1

    def __init__(self, channels: int):
        super().__init__(channels)
        self.running_mean = Buffer(np.zeros(channels, np.float32))
        self.running_var = Buffer(np.ones(channels, np.float32))

    def forward(self, x, training: bool = False):
        x = check.tensor("BatchNorm: x", x, "N", self.weight.size, ...)
        (bias,) = self.along_axis(x, self.bias)
        mean, var = self.running_mean, self.running_var
        if training:
            axes, n = (0, *range(2, x.ndim)), x.size // self.bias.size
            if n < 2:
                raise ValueError(
                    f"BatchNorm: x {x.shape} has {n} values per channel, training needs at least 2 "
                    "(in fit x is a shard of the batch: choose a batch size that leaves no shard of one image)"
                )
            mean, var = x.mean(axes), x.var(axes)
            self._follow(self.running_mean, mean.data)
            self._follow(self.running_var, var.data * (n / (n - 1)))
        mean, scale = self.along_axis(x, mean, self.weight / ops.sqrt(var + EPS))
        return (x - mean) * scale + bias

    def _follow(self, buffer, value):
        step = self.momentum * (value - buffer.data)
        buffer.data = buffer.data + step.astype(buffer.dtype)
