"""PixelCNN++: logistic mixtures over whole pixels and a causal U-Net (Salimans et al. 2017, arXiv 1701.05517).

    p(x) = prod_i p(x_i | x_<i),    p(x_i | x_<i) = sum_k w_k prod_c P(x_ic | m_ck, s_ck)         pixels in raster order

x_i is a whole pixel with its C colours; w, m and s are functions of the pixels before it. P is a logistic distribution
rounded to the grey levels, so levels that are close are alike from the start; in a softmax over 256 they are not.
"""

import math

import numpy as np

from tinygen import check, ops
from tinygen.distributions import LogisticMixture
from tinygen.models.explicit.tractable.autoregressive import Autoregressive
from tinygen.models.images import check_images
from tinygen.models.recipe import Recipe
from tinygen.nn import Dropout, Gate, MaskedConv2d, Module, UpConv2d, init
from tinygen.nn.gated import linear_in_position
from tinygen.nn.pixel_cache import PixelCache
from tinygen.ops.elementwise import Relu
from tinygen.tensor import Tensor

relu = Relu().forward  # of arrays


class PixelCNNpp(Autoregressive):
    """Two stacks, each a U-Net of gated residual blocks: ``down`` sees the rows above a pixel, ``right`` also what is
    left of it, and, block by block, the output of ``down``. A 1x1 convolution gives the mixture's parameters.

    ``image_shape`` (C, H, W), any size; ``levels``: values of a colour; ``channels``: of both stacks at each
    resolution, the first that of the image, each other with half the height and width of the one before; ``blocks``:
    gated blocks at each resolution on the way down, and as many on the way up; ``components``: K; ``kernel``,
    ``first_kernel``: kernel sizes of the blocks and of the first layer; ``dropout``: probability, in each block before
    its last convolution; ``classes``: number of classes, or 0. With classes, ``log_prob``, ``loss`` and ``sample`` need
    ``labels`` (N,), whole numbers 0 .. classes - 1.
    Raises ValueError for an even kernel size, or a number that is too small.

    Deviations from the paper: as in PixelCNN, the residual branches start at zero; as in Gated PixelCNN, ``down`` gets
    each pixel's coordinates, and the gate is tanh(f) sigmoid(g). ReLU, which costs less on a CPU, instead of
    concatenated ELUs. Masks of 3x3 instead of filters of 2x3 and 2x2; after the up-convolution what was there before
    the stride is added, so each resolution is a residual branch of the larger one.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=256,
        channels=(24, 32, 48, 64),
        blocks=1,
        components=10,
        kernel=3,
        first_kernel=7,
        dropout=0.0,
        classes=0,
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels)
        colours, channels = self.image_shape[0], check.counts("channels", channels)
        kernel = check.count("kernel", kernel, 3, odd=True)
        first_kernel = check.count("first_kernel", first_kernel, 3, odd=True)  # a smaller one sees no row above
        self.components, self.classes = check.count("components", components), check.count("classes", classes, 0)
        blocks = check.count("blocks", blocks)
        self.above = MaskedConv2d("above", colours, channels[0], first_kernel, rng=rng)
        self.left = MaskedConv2d("A", colours, channels[0], (1, first_kernel), rng=rng)
        self.down = UNet("rows", channels, blocks, kernel, dropout, self.classes, rng=rng)
        self.right = UNet("B", channels, blocks, kernel, dropout, self.classes, rng=rng)
        # For each component: its weight's logit; mean and log-scale of each colour; C (C - 1) / 2 coefficients
        kinds = 1 + 2 * colours + colours * (colours - 1) // 2
        self.last = MaskedConv2d("B", channels[0], kinds * self.components, 1, rng=rng, gain=0.0)
        # All components of zeros would stay equal; these cover the levels evenly
        start = np.zeros((kinds, self.components), np.float32)
        start[1 : 2 * colours : 2] = (2 * np.arange(self.components) + 1) / self.components - 1
        start[2 : 2 * colours + 1 : 2] = -math.log(1.5 * self.components)
        self.last.bias.data = start.ravel()

    # -- the network

    def network(self, x, rng=None, labels=None) -> Tensor:
        """Scaled images (N, C, H, W) -> parameters of the mixtures (N, kinds K, H, W)."""
        above = self.above(x)
        seen = self.down(above, None, rng, labels)  # the outputs of all blocks
        h = self.right(self.left(x) + above, seen, rng, labels)[-1]
        return self.last(ops.relu(h))

    def mixture(self, parameters) -> LogisticMixture:
        """(kinds K, ...) -> p(x_i | x_<i), a distribution over pixels (C, ...)."""
        c = self.image_shape[0]
        y = parameters.reshape(-1, self.components, *parameters.shape[1:])
        coefficients = ops.tanh(y[1 + 2 * c :]) if c > 1 else None
        return LogisticMixture(y[0], y[1 : 2 * c : 2], y[2 : 2 * c + 1 : 2], coefficients, self.levels)

    def _mixture(self, x, rng, labels):
        """The mixtures of all pixels of a Tensor x (N, C, H, W)."""
        x, labels = self._scaled(x, self.dtype), self._labels(labels, x.shape[0])
        return self.mixture(self.network(x, rng, labels).transpose(1, 0, 2, 3))

    def _log_prob(self, x, rng, labels):
        x = check_images(x, self.image_shape, self.levels)
        log_p = self._mixture(x, rng, labels).log_prob(x.data.swapaxes(0, 1))  # log p(x_i | x_<i), (N, H, W)
        return log_p.sum((1, 2))

    # -- one colour after the other, for sampling

    def logits(self, x, rng=None, labels=None):
        """(N, C, H, W) -> (N, 3 K, C, H, W): for each value the mixture p(x_ic | x_<i, x_i1 .. x_ic-1) over one colour:
        the logits of K weights, K means and K log-scales.

        ``rng``: for dropout; without it nothing is dropped.
        """
        x = check_images(x, self.image_shape, self.levels)
        mixture, values = self._mixture(x, rng, labels), x.data.swapaxes(0, 1)
        y = ops.stack([self._of_colour(mixture, values, c) for c in range(len(values))])  # (C, 3 K, N, H, W)
        return y.transpose(2, 1, 0, 3, 4)

    def _of_colour(self, mixture, x, colour):
        p = mixture.given(x, colour)
        return ops.concatenate([p.logits, p.means[0], p.log_scales[0]])

    def _draw(self, logits, u, temperature):
        w, mean, log_scale = logits.data.reshape(3, 1, self.components, -1)
        log_scale = log_scale + math.log(temperature)
        return LogisticMixture(w[0] / temperature, mean, log_scale, None, self.levels).at(u)

    def conditionals(self, n, labels):
        (c, height, width), dtype = self.image_shape, self.dtype
        at, rows = (PixelCache(n, height, width, self.parameters()[0].data) for _ in range(2))
        rows.column = parameters = above = seen = None
        left, last = (at.function(layer) for layer in (self.left, self.last))

        def conditional(x, row, column, colour):
            nonlocal parameters, above, seen
            if not colour:
                if (row, column) != (0, 0):  # the previous pixel is complete
                    at.store(self._scaled(x[:, :, at.row, at.column], dtype).T)
                if not column:
                    if row:
                        rows.store(self._scaled(x[:, :, rows.row], dtype).T)
                    rows.row = row
                    above = rows.function(self.above)(rows.zeros(width, c))  # its own row, which it does not see
                    seen = self.down(above, labels=labels, at=rows)
                at.row, at.column = row, column
                h = left(at.zeros(c)) + above[column]
                h = self.right(h, seen, labels=labels, at=at)[-1]
                parameters = Tensor(last(relu(h)))
                return parameters[: 3 * self.components]  # they say all of the first colour
            return self._of_colour(self.mixture(parameters), x[:, :, row, column].T, colour)

        return conditional


class UNet(Module):
    """``blocks`` gated blocks; a U-Net of half the height and width on their output, through a convolution of stride 2,
    added after an up-convolution; and ``blocks`` more, each of which also gets the output of one of the first, the last
    one first: (N, channels, H, W) -> the outputs of all blocks, in this order.

    Pixel (i, j) of the smaller images knows what pixel (2 i, 2 j) knows, and serves (2 i .. 2 i + 1, 2 j .. 2 j + 1).
    """

    def __init__(self, mask, channels, blocks, kernel, dropout, classes, *, rng):
        width, *smaller = channels
        settings = mask, width, kernel, dropout, classes
        self.before = [Block(*settings, False, rng=rng) for _ in range(blocks)]
        self.shrink = self.inner = self.grow = None
        if smaller:
            self.shrink = MaskedConv2d(mask, width, smaller[0], kernel, stride=2, rng=rng, gain=2.0)
            self.inner = UNet(mask, smaller, blocks, kernel, dropout, classes, rng=rng)
            self.grow = UpConv2d(smaller[0], width, 2, stride=2, rng=rng)
        self.after = [Block(*settings, True, rng=rng) for _ in range(blocks)]

    def forward(self, h, above=None, rng=None, labels=None, at=None):
        """``above``: for each block, the output of the same block in the stack that sees the rows above.

        ``at``: the ``PixelCache`` for one pixel, with arrays h (channels, N) and rows ``above`` (W, channels, N), or
        for one row, with h (W, channels, N).
        """
        n, outputs, above = len(self.before), [], above or [None] * self.blocks()
        for block, seen in zip(self.before, above):
            outputs.append(h := block(h, seen, None, rng, labels, at))
        skips = outputs[::-1]
        if self.inner is not None:
            inside = self.inside if at is None else at.function(self, labels)
            inner, grown = inside(h, above[n:-n], rng, labels)
            h, outputs = h + grown, outputs + inner
        for block, seen, skip in zip(self.after, above[-n:], skips):
            outputs.append(h := block(h, seen, skip, rng, labels, at))
        return outputs

    def blocks(self):
        return 2 * len(self.before) + (self.inner.blocks() if self.inner is not None else 0)

    def inside(self, h, above, rng, labels):
        """The outputs of the smaller U-Net, and the last of them in the size of h (N, channels, H, W)."""
        inner = self.inner(self.shrink(ops.relu(h)), above, rng, labels)
        grown = self.grow(ops.relu(inner[-1]))
        return inner, grown[:, :, : h.shape[2], : h.shape[3]]  # of odd sizes the last row or column is cut off

    def one_pixel(self, at, labels):
        """``inside`` at one pixel, or in one row. The smaller U-Net runs where the stride does not skip it; its output
        is kept for the two rows that it serves."""
        half, shrink, inner = at.shrunk(), at.function(self.shrink), None
        weight, bias = self.grow.weight.data.transpose(2, 3, 1, 0), self.grow.bias.data[:, None]  # (2, 2, out, in)
        kept = at.zeros(2, 2 * half.width, len(bias))  # two rows (row, column, out, N)

        def inside(h, above, rng, labels):
            nonlocal inner
            small = shrink(relu(h))
            if small is not None:
                half.row = at.row // 2
                half.column = None if at.column is None else at.column // 2
                inner = self.inner(small, above, None, labels, half)
                for i, j in np.ndindex(2, 2):
                    columns = slice(j, None, 2) if at.column is None else at.column + j
                    kept[i, columns] = weight[i, j] @ relu(inner[-1]) + bias
            return inner, kept[at.row % 2, slice(at.width) if at.column is None else at.column]

        return inside


class Block(Module):
    """h + gate(conv(dropout(f(conv(f(h)) + 1x1 f(above) + 1x1 f(skip))))) with f = ReLU, (N, channels, H, W).

    ``above``: the other stack's output, for mask B; ``skip``: an earlier output of the same size, if ``skips``.
    """

    def __init__(self, mask, channels, kernel, dropout, classes, skips, *, rng):
        self.first = MaskedConv2d(mask, channels, channels, kernel, rng=rng, gain=2.0)
        self.link = MaskedConv2d("B", channels, channels, 1, rng=rng) if mask == "B" else None
        self.skip = MaskedConv2d("B", channels, channels, 1, rng=rng) if skips else None
        self.dropout = Dropout(dropout)
        self.second = MaskedConv2d(mask, channels, 2 * channels, kernel, rng=rng, gain=0.0)
        self.position = init.zeros((2, 2 * channels)) if mask == "rows" else None
        self.gate = Gate(channels, classes=classes)

    def forward(self, h, above=None, skip=None, rng=None, labels=None, at=None):
        if at is not None:
            return at.function(self, labels)(h, above, skip)
        y = self.first(ops.relu(h))
        if self.link is not None:
            y = y + self.link(ops.relu(above))
        if self.skip is not None:
            y = y + self.skip(ops.relu(skip))
        y = self.second(self.dropout(ops.relu(y), rng))
        if self.position is not None:
            y = y + linear_in_position(self.position, *y.shape[2:])
        return h + self.gate(y, labels)

    def one_pixel(self, at, labels):
        """The function (channels, N) -> (channels, N) at a pixel, or (W, channels, N) -> the same in a row."""
        first, second, gate = at.function(self.first), at.function(self.second), self.gate.one_pixel(at, labels)
        link, skipped = (None if layer is None else layer.one_pixel(at) for layer in (self.link, self.skip))
        row = linked = None
        if self.position is not None:
            bias = linear_in_position(self.position, at.height, at.width).data.transpose(1, 2, 0)[..., None]

        def block(h, above, skip):
            nonlocal row, linked
            y = first(relu(h))
            if link:
                if row != at.row:  # once for the whole row
                    row, linked = at.row, link(relu(above))
                y = y + linked[at.column]
            if skipped:
                y = y + skipped(relu(skip))
            y = second(relu(y))
            return h + gate(y if at.column is not None else y + bias[at.row])

        return block


RECIPES = {
    "pixelcnnpp": Recipe(PixelCNNpp, {"dropout": 0.1}, protocol="8-bit", steps=(40_000,)),
    "emoji": Recipe(
        PixelCNNpp,
        {"image_shape": (3, 32, 32), "dropout": 0.3},
        protocol="emoji",
        steps=(5000,),
        batch_size=16,
    ),
}
