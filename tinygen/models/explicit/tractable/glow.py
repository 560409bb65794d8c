"""Glow: a flow with learned mixtures of channels (Kingma and Dhariwal 2018, arXiv 1807.03039)."""

import math

import numpy as np

from tinygen import check, ops
from tinygen.models.explicit.tractable.flow import Coupling, Flatten, Flow, SoftUniform, Squeeze, coupling_network
from tinygen.models.recipe import Recipe
from tinygen.nn import Buffer, Module, Parameter, init
from tinygen.tensor import no_grad

SMALLEST = 0.01  # standard deviation that counts in the first minibatch, so that channels of one value stay finite


class Glow(Flow):
    """At each scale: squeeze, then ``steps`` of actnorm, invertible 1x1 convolution and affine coupling; then half of
    the channels leaves (figure 2).

    ``image_shape`` (C, H, W); ``levels`` and ``dequantization`` as in ``Flow``; ``scales``: at most so many, fewer
    where height or width is odd before; ``hidden``, ``blocks``: channels and residual blocks of the couplings'
    networks. Where height or width is odd at first, and for vectors, all D numbers are channels of one pixel, which
    takes a D x D matrix a step. Raises ValueError for a number that is too small.

    Deviations from the paper: z is softly uniform, scales are bounded (Dinh et al. 2017), and the networks are those of
    Real NVP. The last coupling of a scale changes the half that leaves, as a function of the half that stays. This
    plays the role of the learned conditional density in the authors' code.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=256,
        scales=2,
        steps=6,
        hidden=32,
        blocks=1,
        dequantization="uniform",
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, check.count("scales", scales), dequantization, rng=rng)
        steps = check.count("steps", steps)
        hidden, blocks = check.count("hidden", hidden), check.count("blocks", blocks, 0)
        squeeze = Squeeze()
        if self.shapes == [self.image_shape]:
            self.shapes, squeeze = [(math.prod(self.image_shape), 1, 1)], Flatten(self.image_shape)
        self.scales = [
            [squeeze, *(layer for _ in range(steps) for layer in glow_step(shape, hidden, blocks, rng=rng))]
            for shape in self.shapes
        ]
        self.prior = SoftUniform(math.prod(self.image_shape))
        self.initialized = Buffer(np.zeros(1, np.float32))  # 1: the actnorms have seen images

    @no_grad()
    def initialize(self, x, rng: np.random.Generator, labels=None):
        """Count the levels, and let the actnorms that are not frozen set their scales, one after the other."""
        super().initialize(x, rng, labels)
        if not self.initialized.data.any():
            self._transform(*self._dequantized(x, rng), before=initialize)
            self.initialized.data = self.initialized.data + 1


def initialize(layer, x):
    if isinstance(layer, ActNorm) and layer.requires_grad:
        layer.initialize(x)


def glow_step(shape, hidden, blocks, *, rng):
    """Actnorm, invertible 1x1 convolution and affine coupling on images of ``shape`` (C, H, W)."""
    c = shape[0]
    mask = (np.arange(c) < c // 2).reshape(c, 1, 1)
    network = coupling_network(shape, hidden, blocks, rng=rng)
    return ActNorm(c), InvertibleConv1x1(c, rng=rng), Coupling(mask, network)


class ActNorm(Module):
    """y = x exp(log_scale) + bias, with a learned pair for each channel (section 3.1)."""

    def __init__(self, channels):
        self.log_scale, self.bias = init.zeros(channels), init.zeros(channels)

    def initialize(self, x):
        """Make y's mean 0 and its variance 1 in each channel, over the batch x and all positions."""
        std = ops.maximum(ops.std(x, (0, 2, 3)), SMALLEST)
        self.log_scale.data, self.bias.data = -ops.log(std).data, -(x.mean((0, 2, 3)) / std).data

    def forward(self, x):
        log_det = x.shape[2] * x.shape[3] * self.log_scale.sum()  # H W sum log |s|
        scale, bias = ops.exp(self.log_scale).reshape(-1, 1, 1), self.bias.reshape(-1, 1, 1)
        return x * scale + bias, ops.broadcast_to(log_det, x.shape[:1])

    def inverse(self, y):
        return (y - self.bias.reshape(-1, 1, 1)) * ops.exp(-self.log_scale).reshape(-1, 1, 1)


class InvertibleConv1x1(Module):
    """y = W x at each position, with W (C, C), which starts as a random permutation of the channels (section 3.2).

    Deviation from the paper, which starts with a random rotation: that would mix uniform noise, of which most of an
    image consists, into something else, before any coupling has seen it.
    """

    def __init__(self, channels, *, rng):
        self.weight = Parameter(np.eye(channels, dtype=np.float32)[check.generator(rng).permutation(channels)])

    def forward(self, x):
        # log |det| = H W log |det W|  (equation 9)
        log_det = x.shape[2] * x.shape[3] * ops.slogdet(self.weight)[1]
        return self._times(self.weight, x), ops.broadcast_to(log_det, x.shape[:1])

    def inverse(self, y):
        return self._times(ops.inverse(self.weight), y)

    def _times(self, weight, x):
        return ops.conv2d(x, weight.reshape(*weight.shape, 1, 1))


RECIPES = {
    "glow": Recipe(
        Glow,
        {"steps": 8, "hidden": 48},
        protocol="8-bit",
        steps=(20_000,),
        lr=5e-3,
        weight_decay=0.0,  # it would shrink the 1x1 convolutions, and with them log |det W|
        published="1.05",  # Grathwohl et al. 2019, table 2
    )
}
