"""Gated PixelCNN: two stacks without a blind spot, gates, and classes (van den Oord et al. 2016b, arXiv 1606.05328)."""

import numpy as np

from tinygen import check, ops
from tinygen.models.explicit.tractable.pixel_network import PixelNetwork
from tinygen.models.recipe import Recipe
from tinygen.nn import Gate, MaskedConv2d, Module, VerticalStack


class GatedPixelCNN(PixelNetwork):
    """p(x | class) = prod_i p(x_i | x_<i, class): a vertical stack sees all rows above; a horizontal stack sees the
    pixels to the left and, layer by layer, the output of the vertical one; then twice (ReLU, 1x1 mask B).

    ``image_shape`` (C, H, W); ``levels``: values per pixel; ``channels``: channels of each stack, a multiple of C;
    ``layers``: number of layers after the first, which has mask A and no residual connection; ``kernel``: their kernel
    size; ``first_kernel``: kernel size of the first layer; ``classes``: number of classes, or 0. With classes,
    ``log_prob``, ``loss`` and ``sample`` need ``labels`` (N,), whole numbers 0 .. classes - 1.
    Raises ValueError for channels that are not a multiple of C, an even kernel size, or a number that is too small.

    Deviations from the paper: as in PixelCNN, residual branches and logits start at zero; the vertical stack
    gets each pixel's coordinates, with which it learns much faster.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=2,
        channels=32,
        layers=7,
        kernel=3,
        first_kernel=7,
        classes=0,
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, channels)
        first_kernel = check.count("first_kernel", first_kernel, 3, odd=True)  # a smaller one sees no row above
        kernel, layers = check.count("kernel", kernel, odd=True), check.count("layers", layers, 0)
        groups, channels, classes = self.image_shape[0], self.channels, check.count("classes", classes, 0)
        self.classes = classes
        self.vertical = VerticalStack(groups, channels, layers + 1, first_kernel, kernel, classes, rng=rng)
        self.first = HorizontalLayer("A", groups, channels, first_kernel, groups, classes, rng=rng)
        self.layers = [
            HorizontalLayer("B", channels, channels, kernel, groups, classes, rng=rng) for _ in range(layers)
        ]
        self.hidden = MaskedConv2d("B", channels, 2 * channels, 1, groups, rng=rng, gain=2.0)
        self.last = MaskedConv2d("B", 2 * channels, groups * self.outputs, 1, groups, rng=rng, gain=0.0)

    def network(self, x, rng=None, labels=None, at=None):
        above = self.vertical(x, labels, at)
        h = self.first(x, above[0], labels, at)
        for i, layer in enumerate(self.layers, start=1):
            h = h + layer(h, above[i], labels, at)
        h = self.hidden(ops.relu(h), at)
        return self.last(ops.relu(h), at)


class HorizontalLayer(Module):
    """A 1 x k masked convolution, to which the vertical stack's output is added, a gate, and a 1x1 convolution:
    (N, in_channels, H, W) and (N, 2 channels, H, W) -> (N, channels, H, W)."""

    def __init__(self, mask, in_channels, channels, kernel, groups, classes, *, rng):
        self.conv = MaskedConv2d(mask, in_channels, 2 * channels, (1, kernel), groups, rng=rng)
        self.gate = Gate(channels, groups, classes)
        self.out = MaskedConv2d("B", channels, channels, 1, groups, rng=rng, gain=1.0 if mask == "A" else 0.0)

    def forward(self, h, above, labels=None, at=None):
        y = self.conv(h, at) + above
        return self.out(self.gate(y, labels, at), at)


SETTINGS = {"channels": 16, "layers": 12, "kernel": 5, "first_kernel": 15}
RECIPES = {
    "gated-pixelcnn": Recipe(GatedPixelCNN, SETTINGS, protocol="static", steps=(30_000,)),
    "gated-pixelcnn-classes": Recipe(
        GatedPixelCNN,
        {**SETTINGS, "classes": 10},
        protocol="static",
        steps=(2000,),
        lr=2e-3,
        averaging=0.995,
        start="gated-pixelcnn",
    ),
}
