"""Self-attention over pixels: a transformer's decoder with masked convolutions (Chen et al. 2018, arXiv 1712.09763)."""

import numpy as np

from tinygen import check, ops
from tinygen.models.explicit.tractable.autoregressive import Autoregressive
from tinygen.models.images import check_images
from tinygen.models.recipe import Recipe
from tinygen.nn import CausalSelfAttention, ChannelNorm, Dropout, Gate, MaskedConv2d, Module, init
from tinygen.nn.pixel_cache import PixelCache
from tinygen.tensor import Tensor


class PixelTransformer(Autoregressive):
    """p(x) = prod_i p(x_i | x_<i): position i gets x_{i-1}, and attends to all positions up to its own.

    The values of an image are one sequence in raster order, with R, G and B of a pixel side by side: an image of one
    colour and of width W C. It is shifted by one position, so that i gets x_{i-1} and the first a learned start. Then a
    convolution gives each position its neighbourhood, and a learned vector tells it where it is. After the blocks, as
    in PixelCNN, (ReLU, 1x1 convolution) twice give the logits.

    ``image_shape`` (C, H, W); ``levels``: values per pixel; ``channels``: of each position; ``blocks``: their number;
    ``heads``: of attention, which divide the channels; ``kernel``: size of the blocks' convolutions; ``first_kernel``:
    of the first one; ``dropout``: probability, at the end of each branch of a block; ``classes``: number of classes, or
    0. With classes, ``log_prob``, ``loss`` and ``sample`` need ``labels`` (N,), whole numbers 0 .. classes - 1.
    Raises ValueError for heads that do not divide the channels, an even kernel size, or a number that is too small.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=2,
        channels=32,
        blocks=6,
        heads=2,
        kernel=3,
        first_kernel=7,
        dropout=0.0,
        classes=0,
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels)
        c, h, w = self.image_shape
        channels, self.classes = check.count("channels", channels), check.count("classes", classes, 0)
        first_kernel = check.count("first_kernel", first_kernel, odd=True)
        self.start = init.zeros(1)
        self.first = MaskedConv2d("B", 1, channels, first_kernel, rng=rng)
        self.position = init.zeros((channels, h, w * c))
        self.blocks = [
            Block(channels, heads, kernel, dropout, self.classes, rng=rng)
            for _ in range(check.count("blocks", blocks, 0))
        ]
        self.hidden = MaskedConv2d("B", channels, channels, 1, rng=rng, gain=2.0)
        self.last = MaskedConv2d("B", channels, self.outputs, 1, rng=rng, gain=0.0)

    def network(self, x, position, rng=None, labels=None, at=None) -> Tensor:
        """From shifted images (N, 1, H, W C) to logits (N, K, H, W C); at one position from (1, N) to (K, N)."""
        h = self.first(x, at) + position
        for block in self.blocks:
            h = block(h, rng, labels, at)
        h = self.hidden(ops.relu(h), at)
        return self.last(ops.relu(h), at)

    def logits(self, x, rng=None, labels=None):
        x = check_images(x, self.image_shape, self.levels)
        n, (c, h, w) = x.shape[0], self.image_shape
        values = self._scaled(x, self.dtype).transpose(0, 2, 3, 1).reshape(n, h * w * c)
        start = ops.broadcast_to(self.start, (n, 1))
        shifted = ops.concatenate([start, values[:, :-1]], axis=1).reshape(n, 1, h, w * c)
        y = self.network(shifted, self.position, rng, self._labels(labels, n))
        return y.reshape(n, self.outputs, h, w, c).transpose(0, 1, 4, 2, 3)

    def conditionals(self, n, labels):
        c, h, w = self.image_shape
        at = PixelCache(n, h, w * c, self.start.data)
        values = ops.broadcast_to(self.start, (1, n)).data  # the one before the next to draw

        def conditional(x, row, column, colour):
            nonlocal values
            at.row, at.column = row, column * c + colour
            i = (at.row * at.width + at.column) - 1  # of the value before
            if i >= 0:
                pixel, before = divmod(i, c)
                values = self._scaled(x[:, before, pixel // w, pixel % w], self.dtype)[None]
            position = self.position[:, at.row, at.column, None]
            return self.network(Tensor(values), position, labels=labels, at=at)

        return conditional


class Block(Module):
    """h + self-attention(norm(h)), then h + (k x k mask B, gate, 1x1)(norm(h)): far away, then nearby.

    A transformer has two layers on each position alone in place of the second branch. The convolution sees a
    neighbourhood, which attention then need not look for.
    """

    def __init__(self, channels, heads, kernel, dropout, classes, *, rng):
        self.norms = [ChannelNorm(channels) for _ in range(2)]
        self.attention = CausalSelfAttention(channels, heads, rng=rng, gain=0.0)
        self.conv = MaskedConv2d("B", channels, 2 * channels, check.count("kernel", kernel, odd=True), rng=rng)
        self.gate = Gate(channels, classes=classes)
        self.out = MaskedConv2d("B", channels, channels, 1, rng=rng, gain=0.0)
        self.dropout = Dropout(dropout)

    def forward(self, h, rng=None, labels=None, at=None):
        if at is not None:
            return at(self, h, labels)
        h = h + self.dropout(self.attention(self.norms[0](h)), rng)
        y = self.gate(self.conv(self.norms[1](h)), labels)
        return h + self.dropout(self.out(y), rng)

    def one_pixel(self, at, labels):
        """The function (channels, N) -> (channels, N) at a position."""
        layers = *self.norms, self.attention, self.conv, self.out
        norm, norm_2, attention, conv, out = (layer.one_pixel(at) for layer in layers)
        gate = self.gate.one_pixel(at, labels)

        def block(h):
            h = h + attention(norm(h))
            return h + out(gate(conv(norm_2(h))))

        return block


RECIPES = {
    "transformer": Recipe(
        PixelTransformer,
        {"channels": 32, "blocks": 6, "heads": 2, "kernel": 3, "first_kernel": 15},
        protocol="published",
        steps=(15_000,),
    )
}
