"""Convolution layers on images (N, C, H, W): plain, transposed and masked."""

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.nn import init
from tinygen.nn.module import Module
from tinygen.tensor import Tensor


class Conv2d(Module):
    """Convolution: (N, in_channels, H, W) -> (N, out_channels, P, Q); weight (out, in, kh, kw) as in PyTorch.

    ``kernel_size``, ``stride``, ``padding``: an integer or (vertical, horizontal).
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, *, rng, gain: float = 1.0):
        in_channels, out_channels = check.count("in_channels", in_channels), check.count("out_channels", out_channels)
        kernel_size = check.pair("kernel_size", kernel_size)
        self.stride, self.padding = check.pair("stride", stride), check.pair("padding", padding, 0)
        fan_in = in_channels * kernel_size[0] * kernel_size[1]
        self.weight = init.he(rng, (out_channels, in_channels, *kernel_size), fan_in, gain)
        self.bias = init.zeros(out_channels)

    def forward(self, x):
        return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    def describe(self):
        return f"stride={self.stride}, padding={self.padding}"


class UpConv2d(Conv2d):
    """Transposed convolution, from a small image to a larger one; weight (in, out, kh, kw) as in PyTorch.

    ``forward(x, size)``: ``size`` is the height and width of the result, by default the smallest possible. With a
    stride s there are s possible sizes, which ``Conv2d`` maps to the same size of x. Raises ValueError for others.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, *, rng, gain: float = 1.0):
        in_channels, out_channels = check.count("in_channels", in_channels), check.count("out_channels", out_channels)
        self.stride, self.padding = check.pair("stride", stride), check.pair("padding", padding, 0)
        (kh, kw), (sh, sw) = check.pair("kernel_size", kernel_size), self.stride
        # An output pixel sums over one in sh * sw of the kernel's taps, so the fan-in is smaller by that factor.
        self.weight = init.he(rng, (in_channels, out_channels, kh, kw), in_channels * kh * kw / (sh * sw), gain)
        self.bias = init.zeros(out_channels)

    def forward(self, x, size=None):
        x = check.tensor("UpConv2d: x", x, *"NCHW")
        smallest = [
            (n - 1) * s - 2 * p + k for n, s, p, k in zip(x.shape[2:], self.stride, self.padding, self.weight.shape[2:])
        ]
        extra = (0, 0) if size is None else tuple(n - m for n, m in zip(check.pair("size", size), smallest))
        if any(not 0 <= e < s for e, s in zip(extra, self.stride)):
            raise ValueError(
                f"UpConv2d: from x {x.shape} it reaches {tuple(smallest)} and up to stride - 1 more, not {size}"
            )
        return ops.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding, extra)


class MaskedConv2d(Module):
    """Convolution in which a pixel sees only what comes before it in raster order. It keeps height and width; with a
    ``stride`` s it has a result at every s-th pixel of every s-th row, H and W divided by s and rounded up.

    An output pixel sees the rows above and, in its own row, the pixels to the left. At its own position, mask ``"A"``
    shows only earlier colour groups, ``"B"`` its own group too. ``groups`` cuts input and output channels into that
    many blocks in the order of the colours: 1 for grey images (A hides the centre), 3 for R, G, B.
    For the vertical stack of Gated PixelCNN, mask ``"above"`` shows only the rows above, ``"rows"`` all of its own row
    too. Masked weights are zero and stay zero. Kernel sizes are odd.
    Raises ValueError for an even kernel, an unknown mask, or channels that ``groups`` does not divide.
    Source: van den Oord et al. 2016, section 3.4, figure 2; 2016b, figure 1.
    """

    def __init__(self, mask, in_channels, out_channels, kernel_size, groups=1, stride=1, *, rng, gain: float = 1.0):
        check.choice("MaskedConv2d: mask", mask, "A", "B", "above", "rows")
        kh, kw = check.pair("MaskedConv2d: kernel_size", kernel_size, odd=True)
        in_channels, out_channels = check.count("in_channels", in_channels), check.count("out_channels", out_channels)
        groups = check.count("MaskedConv2d: groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"MaskedConv2d: {in_channels} and {out_channels} channels, {groups} groups must divide both"
            )
        self.mask_type, self.padding, self.stride = mask, (kh // 2, kw // 2), check.count("stride", stride)
        # The fan-in counts the weights that are unmasked for the last group. Weights are drawn before the mask is
        # allocated, since the generator may limit their number (weights.load).
        above, left, own = in_channels * (kh // 2) * kw, in_channels * (kw // 2), in_channels // groups
        seen = {"A": left + in_channels - own, "B": left + in_channels, "above": 0, "rows": in_channels * kw}
        self.weight = init.he(rng, (out_channels, in_channels, kh, kw), above + seen[mask], gain)
        kept = np.zeros(self.weight.shape, bool)
        kept[:, :, : kh // 2] = True  # rows above
        if mask in ("A", "B"):
            kept[:, :, kh // 2, : kw // 2] = True  # left in the same row
            out_group, in_group = (np.arange(n) * groups // n for n in (out_channels, in_channels))
            centre = out_group[:, None] > in_group if mask == "A" else out_group[:, None] >= in_group  # (out, in)
            kept[:, :, kh // 2, kw // 2] = centre
        else:
            kept[:, :, kh // 2] = mask == "rows"
        self.mask = kept.any((0, 1))  # (kh, kw): taps that the convolution visits
        # Only with several groups can a visited tap have masked weights.
        self.channel_mask = None if (kept == self.mask).all() else kept.astype(np.float32)
        self.weight.data *= kept
        self.bias = init.zeros(out_channels)

    def to(self, device):
        if self.channel_mask is not None:
            self.channel_mask = to_device(self.channel_mask, device)
        return super().to(device)

    def masked_weight(self) -> Tensor:
        """The weights (out, in, kh, kw), zero where they are masked."""
        return self.weight if self.channel_mask is None else self.weight * Tensor(self.channel_mask)

    def forward(self, x, at=None):
        """``at``: None for whole images, or the ``PixelCache`` for one pixel, with x (in_channels, N), or for one row,
        with x (W, in_channels, N)."""
        if at is not None:
            return at(self, x)
        return ops.conv2d(x, self.masked_weight(), self.bias, self.stride, self.padding, self.mask)

    def one_pixel(self, at):
        """The function (in_channels, N) -> (out_channels, N) at a pixel, or to None where the stride skips it. In a row
        it is (W, in_channels, N) -> (W, out_channels, N). A 1x1 kernel stores no other pixels."""
        if self.weight.shape[2:] != (1, 1):
            return MaskedConvPixel(self, at)
        weight, bias = self.masked_weight().data[:, :, 0, 0], self.bias.data[:, None]
        return lambda h: weight @ h + bias

    def describe(self):
        return f"mask {self.mask_type}"


class MaskedConvPixel:
    """A masked convolution at one pixel: (in, N) -> (out, N), or in one row. It stores its inputs, with zeros around
    the image.

    ``weights``: weight (out, in, kh, kw) and bias (out,) to use instead of the layer's.
    """

    def __init__(self, layer, at, weights=None):
        weight, bias = weights or (layer.masked_weight(), layer.bias)
        self.bias, self.at, self.stride = bias.data[:, None], at, layer.stride
        self.above, self.left = layer.padding
        # For each row of the kernel with unmasked taps: its index, their number, and their weights (out, taps * in)
        self.rows = []
        for i, kept in enumerate(layer.mask):
            if kept.any():
                taps = int(kept.sum())  # the unmasked taps of a row come first
                matrix = weight.data[:, :, i, :taps].transpose(0, 2, 1).reshape(weight.shape[0], -1)
                self.rows.append((i, taps, matrix))
        # (row, column, in, N)
        self.inputs = at.zeros(at.height + self.above, at.width + 2 * self.left, weight.shape[1])
        self.row, self.from_above = None, None  # of the row with this index, what the rows above contribute
        if layer.mask_type in ("A", "above"):  # its input is the image
            at.readers.append(self)

    def store(self, h, row, column):
        """Keep the input h (in, N) of a pixel, or (W, in, N) of a row: then ``column`` is None."""
        columns = slice(self.left, self.left + self.at.width) if column is None else column + self.left
        self.inputs[row + self.above, columns] = h

    def read(self, row, column):
        """The output (out, N) at a pixel, from the stored inputs."""
        y = self.bias
        for i, taps, matrix in self.rows:
            seen = self.inputs[row + i, column : column + taps]  # (taps, in, N)
            y = y + matrix @ seen.reshape(matrix.shape[1], -1)
        return y

    def read_row(self, row, rows):
        """(W, out, N): the outputs in a row, from those ``rows`` of the kernel."""
        y, columns = self.bias, -(-self.at.width // self.stride)
        for i, _, matrix in rows:
            line = self.inputs[row + i]  # (W, in, N), in which the taps of a pixel, (taps * in, N), are contiguous
            strides = (self.stride * line.strides[0], *line.strides[1:])
            y = y + matrix @ xp(line).lib.stride_tricks.as_strided(line, (columns, matrix.shape[1], self.at.n), strides)
        return y

    def __call__(self, h):
        row, column = self.at.row, self.at.column
        self.store(h, row, column)
        if row % self.stride or (column or 0) % self.stride:
            return None
        if column is None:
            return self.read_row(row, self.rows)
        *above, (i, taps, matrix) = self.rows
        if i < self.above:  # no tap in the pixel's own row
            return self.read(row, column)
        y = self.bias
        if above:  # once for the whole row
            if row != self.row:
                self.row, self.from_above = row, self.read_row(row, above)
            y = self.from_above[column // self.stride]
        return y + matrix @ self.inputs[row + i, column : column + taps].reshape(matrix.shape[1], -1)
