"""The convolutional encoder and decoder that several models share."""

import math

from tinygen import check, ops
from tinygen.nn import Conv2d, Linear, Module, UpConv2d

CHANNELS = (16, 32, 64, 64)  # output channels of the four convolutions, each of which halves height and width


def sizes(image_shape, convolutions: int = 4) -> list[tuple[int, int]]:
    """Height and width of the image, and after each convolution, which halves them and rounds up."""
    steps = [tuple(image_shape[1:])]
    for _ in range(convolutions):
        steps.append(tuple((n + 1) // 2 for n in steps[-1]))
    return steps


class Residual(Module):
    """h + conv(ReLU(conv(ReLU(h)))), 3x3, initially the identity: (N, channels, H, W) -> the same.

    Source: He et al. 2016b (arXiv 1603.05027), figure 1, without its normalization.
    """

    def __init__(self, channels, *, rng):
        self.first = Conv2d(channels, channels, 3, padding=1, rng=rng, gain=2.0)
        self.second = Conv2d(channels, channels, 3, padding=1, rng=rng, gain=0.0)

    def forward(self, h):
        return h + self.second(ops.relu(self.first(ops.relu(h))))


class Encoder(Module):
    """Convolutions of stride 2 with ReLU, each followed by ``blocks`` residual blocks, and a linear layer:
    (N, C, H, W) -> (N, outputs)."""

    def __init__(self, image_shape, outputs, channels=CHANNELS, blocks=0, *, rng):
        steps = zip((image_shape[0], *channels), channels)
        self.convs = [Conv2d(a, b, 3, stride=2, padding=1, rng=rng, gain=2.0) for a, b in steps]
        self.blocks = [[Residual(n, rng=rng) for _ in range(blocks)] for n in channels]
        height, width = sizes(image_shape, len(channels))[-1]
        self.out = Linear(channels[-1] * height * width, outputs, rng=rng)

    def forward(self, x):
        for i, (conv, blocks) in enumerate(zip(self.convs, self.blocks)):
            x = conv(ops.relu(x) if i else x)
            for block in blocks:
                x = block(x)
        return self.out(ops.relu(x).reshape(x.shape[0], -1))


class Decoder(Module):
    """The encoder in reverse: a linear layer, and upconvolutions, each preceded by ``blocks`` residual blocks:
    (N, inputs), array or Tensor -> (N, C, H, W)."""

    def __init__(self, image_shape, inputs, channels=CHANNELS, blocks=0, *, rng):
        self.sizes = sizes(image_shape, len(channels))
        self.smallest = (channels[-1], *self.sizes[-1])
        self.into = Linear(inputs, math.prod(self.smallest), rng=rng, gain=2.0)
        steps = zip(channels[::-1], (*channels[-2::-1], image_shape[0]))
        self.ups = [UpConv2d(a, b, 3, stride=2, padding=1, rng=rng, gain=2.0) for a, b in steps]
        self.blocks = [[Residual(n, rng=rng) for _ in range(blocks)] for n in channels[::-1]]

    def forward(self, z):
        z = check.tensor("code", z, "N", self.into.weight.shape[1])
        h = self.into(z if z.dtype == self.dtype else z.astype(self.dtype)).reshape(z.shape[0], *self.smallest)
        for blocks, up, size in zip(self.blocks, self.ups, reversed(self.sizes[:-1])):
            for block in blocks:
                h = block(h)
            h = up(ops.relu(h), size)
        return h
