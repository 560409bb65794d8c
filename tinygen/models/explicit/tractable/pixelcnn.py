"""PixelCNN: the chain rule over pixels with masked convolutions (van den Oord et al. 2016, section 3.5)."""

import numpy as np

from tinygen import check, ops
from tinygen.models.explicit.tractable.pixel_network import PixelNetwork
from tinygen.models.recipe import Recipe
from tinygen.nn import Dropout, MaskedConv2d, Module


class PixelCNN(PixelNetwork):
    """p(x) = prod_i p(x_i | x_<i): a convolution with mask A, residual blocks with mask B, twice (ReLU, 1x1 mask B),
    the second of which gives the logits.

    ``image_shape`` (C, H, W); ``levels``: values per pixel; ``channels`` h: the blocks' inner channels, half the
    stream's; ``blocks``: their number; ``kernel``: their kernel size; ``first_kernel``: the first layer's, 7 in the
    paper (on the image's few channels a larger one is cheap, and it sees further); ``dropout``: probability, in each
    block before its last convolution. Raises ValueError for channels that are not a multiple of C, an even kernel size,
    or a number that is too small.

    Deviations from the paper, each for faster learning: the fan-in of the initial weights (He et al. 2015) counts
    unmasked weights only; the last convolution of each block and the logits start at zero, so that the blocks start as
    the identity and the model as the uniform distribution. Dropout against overfitting is as in Salimans et al. 2017,
    section 2.5.
    As in the paper there is a blind spot, pixels above and to the right that the 3x3 masks never reach. Gated PixelCNN
    removes it.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=2,
        channels=32,
        blocks=7,
        kernel=3,
        first_kernel=7,
        dropout=0.0,
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, channels)
        groups, channels = self.image_shape[0], self.channels
        stream = 2 * channels
        first_kernel, kernel = (
            check.count("first_kernel", first_kernel, odd=True),
            check.count("kernel", kernel, odd=True),
        )
        self.first = MaskedConv2d("A", groups, stream, first_kernel, groups, rng=rng)
        self.blocks = [
            ResidualBlock(channels, kernel, groups, dropout, rng=rng) for _ in range(check.count("blocks", blocks, 0))
        ]
        self.hidden = MaskedConv2d("B", stream, stream, 1, groups, rng=rng, gain=2.0)
        self.last = MaskedConv2d("B", stream, groups * self.outputs, 1, groups, rng=rng, gain=0.0)

    def network(self, x, rng=None, labels=None, at=None):
        h = self.first(x, at)
        for block in self.blocks:
            h = block(h, rng, at)
        h = self.hidden(ops.relu(h), at)
        return self.last(ops.relu(h), at)


class ResidualBlock(Module):
    """h + (ReLU, 1x1 2h -> h, ReLU, k x k mask B h -> h, dropout, ReLU, 1x1 h -> 2h) (figure 5, left)."""

    def __init__(self, channels, kernel, groups, dropout, *, rng):
        self.down = MaskedConv2d("B", 2 * channels, channels, 1, groups, rng=rng, gain=2.0)
        self.middle = MaskedConv2d("B", channels, channels, kernel, groups, rng=rng, gain=2.0)
        self.dropout = Dropout(dropout)
        self.up = MaskedConv2d("B", channels, 2 * channels, 1, groups, rng=rng, gain=0.0)

    def forward(self, h, rng=None, at=None):
        y = self.down(ops.relu(h), at)
        y = self.middle(ops.relu(y), at)
        y = self.dropout(y, rng)
        return h + self.up(ops.relu(y), at)


RECIPES = {
    "pixelcnn": Recipe(
        PixelCNN,
        {"channels": 32, "blocks": 6, "kernel": 5, "first_kernel": 15, "dropout": 0.15},
        protocol="static",
        steps=(25_000,),
        published="81.30",  # van den Oord et al. 2016, table 4
    ),
    "emoji-softmax": Recipe(
        PixelCNN,
        {"image_shape": (3, 32, 32), "levels": 256, "channels": 30, "blocks": 6, "kernel": 5, "dropout": 0.15},
        protocol="emoji",
        steps=(4000,),
        batch_size=16,
    ),
}
