"""Layers of Gated PixelCNN: the gate, and the stack of convolutions that sees the rows above.

``at`` is None for whole images, or the ``PixelCache`` for one pixel.
"""

import numpy as np

from tinygen import check, ops
from tinygen.backend import xp
from tinygen.nn import init
from tinygen.nn.conv import Conv2d, MaskedConv2d, MaskedConvPixel
from tinygen.nn.module import Module
from tinygen.ops.elementwise import Sigmoid
from tinygen.tensor import Tensor

GATE_VARIANCE = 0.116  # of tanh(f) sigmoid(g) for standard normal f and g: E[tanh(f)^2] E[sigmoid(g)^2]


class Gate(Module):
    """tanh(f + V_f h) sigmoid(g + V_g h): (N, 2 channels, H, W) -> (N, channels, H, W).

    f and g are the two halves of x's channels (with several ``groups``, of each group's channels). h is the one-hot
    class, given as ``labels`` (N,); if ``classes`` is 0 there is no h. Raises ValueError for missing or invalid labels.
    Source: van den Oord et al. 2016b, equations 2 and 4.
    """

    def __init__(self, channels: int, groups: int = 1, classes: int = 0):
        self.channels, self.groups = check.count("channels", channels), check.count("groups", groups)
        if self.channels % self.groups:
            raise ValueError(f"Gate: {channels} channels, groups must divide them, got {groups}")
        self.classes = check.count("classes", classes, 0)
        self.weight = init.zeros((self.classes, 2 * self.channels)) if self.classes else None

    def forward(self, x, labels=None, at=None):
        if at is not None:
            return at(self, x, labels)
        x = check.tensor("Gate: x", x, "N", 2 * self.channels, "H", "W")
        n, _, height, width = x.shape
        labels = check.classes(labels, self.classes, n)
        if labels is not None:
            x = x + self.weight[labels].reshape(n, -1, 1, 1)
        # (N groups, channels / groups, H, W) each
        f, g = ops.split(x.reshape(n * self.groups, -1, height, width), 2, axis=1)
        return (ops.tanh(f) * ops.sigmoid(g)).reshape(n, -1, height, width)

    def one_pixel(self, at, labels):
        """The function (2 channels, N) -> (channels, N) at a pixel, or (W, 2 channels, N) -> (W, channels, N) in a row.
        The classes' weights are looked up once."""
        class_bias = None if labels is None else self.weight.data[labels].T  # (2 channels, N)

        def gate(x):
            x = x if class_bias is None else x + class_bias
            y = x.reshape(*x.shape[:-2], self.groups, 2, -1, at.n)
            f, g = y[..., 0, :, :], y[..., 1, :, :]  # (.., groups, channels / groups, N) each
            return (xp(x).tanh(f) * Sigmoid().forward(g)).reshape(*x.shape[:-2], -1, at.n)

        return gate


class VerticalStack(Module):
    """A stack of gated convolutions that sees all rows above a pixel: (N, in_channels, H, W) -> for each layer
    (N, 2 channels, H, W).

    The kernel of the first layer, of size ``first_kernel``, ends above the pixel's row; those of the other layers, of
    size ``kernel``, end with it. So the stack has no blind spot, and sees nothing of the pixel's row of the image.
    The output of each layer, before its gate, goes through a 1x1 convolution to the horizontal stack.
    ``position``, a linear function of the pixel's coordinates that starts at zero, is added to each convolution's
    output: away from the border, a convolution alone cannot tell where it is.
    ``in_channels``: channels of the image; ``channels``: channels after a gate; ``layers``: their number, with the
    first; ``classes``: as for ``Gate``. Raises ValueError for even kernel sizes.
    Source: van den Oord et al. 2016b, section 2.2, figure 2; Liu et al. 2018 (arXiv 1807.03247) for the coordinates,
    which they add as channels of the image.
    """

    def __init__(self, in_channels, channels, layers, first_kernel, kernel, classes=0, *, rng: np.random.Generator):
        channels, layers = check.count("channels", channels), check.count("layers", layers)
        self.convs = [MaskedConv2d("above", in_channels, 2 * channels, first_kernel, rng=rng)]
        self.convs += [
            MaskedConv2d("rows", channels, 2 * channels, kernel, rng=rng, gain=1 / GATE_VARIANCE)
            for _ in range(layers - 1)
        ]
        self.position = init.zeros((2, layers, 2 * channels))  # (row or column, layer, channel)
        self.gates = [Gate(channels, classes=classes) for _ in range(layers - 1)]
        self.links = [Conv2d(2 * channels, 2 * channels, 1, rng=rng) for _ in range(layers)]

    def forward(self, x, labels=None, at=None):
        if at is not None:
            return at(self, x, labels)
        x = check.tensor("VerticalStack: x", x, *"NCHW")
        position, to_horizontal = self.position_bias(*x.shape[2:]), []  # (layers, 2 channels, H, W)
        for i, (conv, link) in enumerate(zip(self.convs, self.links)):
            y = conv(x) + position[i]
            to_horizontal.append(link(y))
            if i < len(self.gates):
                x = self.gates[i](y, labels)
        return to_horizontal

    def one_pixel(self, at, labels):
        """The function (in_channels, N) -> (layers, 2 channels, N) at a pixel.

        At the first pixel of a row it computes the whole row from the rows above, so each pixel is computed once.
        """
        convs = [MaskedConvPixel(conv, at) for conv in self.convs]
        gates = [gate.one_pixel(at, labels) for gate in self.gates]
        links = [(link.weight.data[:, :, 0, 0], link.bias.data[:, None]) for link in self.links]
        position = self.position_bias(at.height, at.width).data[..., None]  # (layers, 2 channels, H, W, 1)
        to_horizontal = at.zeros(at.width, len(links), position.shape[1])  # (W, layers, 2 channels, N), of one row
        computed = None  # which row

        def stack(_):  # ignores its input: the stack sees only the rows above, which are stored
            nonlocal computed
            if at.row != computed:
                computed = at.row
                for i, (weight, bias) in enumerate(links):
                    for j in range(at.width):
                        y = convs[i].read(at.row, j) + position[i, :, at.row, j]
                        to_horizontal[j, i] = weight @ y + bias
                        if i < len(gates):
                            convs[i + 1].store(gates[i](y), at.row, j)
            return to_horizontal[at.column]

        return stack

    def position_bias(self, height: int, width: int):
        """(layers, 2 channels, H, W), a linear function of the row and the column, both scaled to -1 .. 1."""
        return linear_in_position(self.position, height, width)


def linear_in_position(w, height: int, width: int) -> Tensor:
    """(2, ...) -> (..., H, W): w_0 times the row plus w_1 times the column, both scaled to -1 .. 1."""
    w = w.reshape(*w.shape, 1, 1)
    rows, columns = (xp(w.data).linspace(-1, 1, n, dtype=w.dtype) for n in (height, width))
    return w[0] * Tensor(rows[:, None]) + w[1] * Tensor(columns)  # (.., H, 1) + (.., 1, W)
