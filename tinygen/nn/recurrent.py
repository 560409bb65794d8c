"""Recurrent layers on ``ops.lstm_scan``: the LSTM on sequences, and two that scan an image.

``at`` is None for whole images, or the ``PixelCache`` for one pixel.
"""

import numpy as np

from tinygen import check, ops
from tinygen.backend import xp
from tinygen.nn import init
from tinygen.nn.conv import MaskedConv2d, MaskedConvPixel
from tinygen.nn.module import Module
from tinygen.ops.elementwise import Sigmoid
from tinygen.tensor import Tensor


class LSTM(Module):
    """An LSTM on a batch of sequences: (N, T, in_features) -> (N, T, hidden), and the last state.

    Weights are as in PyTorch: input (4h, in) and state (4h, h), gates in the order i, f, g, o. There is one bias (4h,);
    its forget part starts at 1 so that the cell remembers at first (Jozefowicz et al. 2015).
    """

    def __init__(self, in_features: int, hidden: int, *, rng: np.random.Generator):
        in_features, hidden = check.count("in_features", in_features), check.count("hidden", hidden)
        self.weight_input = init.he(rng, (4 * hidden, in_features), in_features, gain=1.0)
        self.weight_state = init.he(rng, (4 * hidden, hidden), hidden, gain=1.0)
        self.bias = init.zeros(4 * hidden)
        self.bias.data[hidden : 2 * hidden] = 1

    def forward(self, x, state: tuple[Tensor, Tensor] | None = None):
        """``state``: (h, c), each (N, hidden), zero by default. Returns (outputs, (h, c) after the last step)."""
        x = check.tensor("LSTM: x", x, "N", "T", self.weight_input.shape[1])
        (images, steps, _), hidden = x.shape, self.weight_state.shape[1]
        gates = self.weight_input @ x.transpose(1, 2, 0) + self.bias.reshape(-1, 1)  # (T, 4h, N)
        h0 = c0 = _zeros(hidden, 1, images, gates)
        if state is not None:
            if not isinstance(state, tuple | list) or len(state) != 2:
                raise TypeError(f"LSTM: state is {state!r}, needs (h, c)")
            state = [check.tensor("LSTM: h or c of the state", s, images, hidden) for s in state]
            h0, c0 = (s.T.reshape(hidden, 1, images) for s in state)
        weight = self.weight_state.reshape(4 * hidden, hidden, 1)  # a line of length 1, with one tap
        h, c = ops.lstm_scan(gates.reshape(steps, 4 * hidden, 1, images), weight, h0, c0)  # (T, h, 1, N) each
        return h.reshape(steps, hidden, images).transpose(2, 0, 1), tuple(
            s[-1].reshape(hidden, images).T for s in (h, c)
        )


class RowLSTM(Module):
    """Scans an image row by row: (N, channels, H, W) -> (N, hidden, H, W).

    The input-to-state part is a 1 x 3 convolution along the row with mask B. The state-to-state part is a 1 x 3
    convolution over the row above, so that a pixel sees a triangle above it. The state before the first row is learned.
    Source: van den Oord et al. 2016, section 3.1.
    """

    taps = (-1, 0, 1)

    def __init__(self, channels: int, hidden: int, groups: int = 1, *, rng: np.random.Generator):
        hidden = check.count("hidden", hidden)
        self.input = MaskedConv2d("B", channels, 4 * hidden, (1, 3), groups, rng=rng)
        self.groups = groups
        self.weight_state = init.he(rng, (4 * hidden, hidden, 3), 3 * hidden, gain=1.0)
        self.h0, self.c0 = init.zeros(hidden), init.zeros(hidden)

    def forward(self, x, at=None):
        if at is not None:
            return at(self, x)
        hidden = self.h0.size
        weight, bias = input_weights(self)
        x = check.tensor("RowLSTM: x", x, "N", weight.shape[1], "H", "W")
        images, channels, height, width = x.shape
        x = x.transpose(2, 1, 3, 0).reshape(height, channels, width * images)  # (H, C, W N): rows become the steps
        left = ops.pad(x[:, :, :-images], ((0, 0), (0, 0), (images, 0)))  # each pixel's left neighbour
        # Mask B keeps two of the three taps, (4h, C) each: (4h, 2C)
        weight = ops.concatenate([weight[:, :, 0, 0], weight[:, :, 0, 1]], axis=1)
        gates = weight @ ops.concatenate([left, x], axis=1) + bias.reshape(-1, 1)  # (H, 4h, W N)
        gates = gates.reshape(height, 4 * hidden, width, images)
        line = (hidden, width, images)
        h0, c0 = (ops.broadcast_to(s.reshape(hidden, 1, 1), line) for s in (self.h0, self.c0))
        h, _ = ops.lstm_scan(gates, self.weight_state, h0, c0, self.taps)  # (H, h, W, N)
        return h.transpose(3, 1, 0, 2)

    def one_pixel(self, at):
        """The function (channels, N) -> (hidden, N) at a pixel. It keeps the states of this row and the row above."""
        convolve, matrix = MaskedConvPixel(self.input, at, input_weights(self)), _state_matrix(self)
        h = at.zeros(2, at.width + 2, self.h0.size)  # of even rows and odd rows, zero at both ends
        c = at.zeros(2, at.width, self.c0.size)
        h[1, 1:-1], c[1] = self.h0.data[:, None], self.c0.data[:, None]

        def step(x):
            now, before = at.row % 2, (at.row + 1) % 2
            above = h[before, at.column : at.column + 3].reshape(matrix.shape[1], -1)  # (3 hidden, N)
            new_h, new_c = _cell(convolve(x) + matrix @ above, c[before, at.column])
            h[now, at.column + 1], c[now, at.column] = new_h, new_c
            return new_h

        return step


class DiagonalBiLSTM(Module):
    """Scans an image along its diagonals from both upper corners: (N, channels, H, W) -> (N, hidden, H, W).

    In each direction the input-to-state part is a 1x1 convolution. The state-to-state part sees the left neighbour and
    the one above; on the skewed image it is a convolution with 2 taps. The output of the direction from the right is
    shifted down by one row before the two are added, so that no pixel sees a later one. Together the directions see
    every earlier pixel of their input. States start at zero.
    Source: van den Oord et al. 2016, section 3.2, figure 3.
    """

    def __init__(self, channels: int, hidden: int, groups: int = 1, *, rng: np.random.Generator):
        self.left = DiagonalLSTM(channels, hidden, groups, rng=rng)
        self.right = DiagonalLSTM(channels, hidden, groups, rng=rng)

    def forward(self, x, at=None):
        if at is not None:
            return at(self, x)
        x = check.tensor("DiagonalBiLSTM: x", x, "N", self.left.input.weight.shape[1], "H", "W")
        x = x.transpose(2, 1, 3, 0)  # (H, C, W, N)
        right = ops.flip(self.right(ops.flip(x, 2)), 2)
        h = self.left(x) + ops.pad(right[:-1], ((1, 0), (0, 0), (0, 0), (0, 0)))
        return h.transpose(3, 1, 0, 2)

    def one_pixel(self, at):
        """The function (channels, N) -> (hidden, N) at a pixel.

        The direction from the left keeps the states to the left and above. In the direction from the right a state
        depends on all pixels to its right, but is first used one row further down. So at the first pixel of a row, the
        row above is scanned from the right; each pixel is still computed once.
        """
        left, right = self.left.one_step(), self.right.one_step()
        channels, hidden = self.left.input.weight.shape[1], self.left.weight_state.shape[1]
        # h of even rows and odd rows, c of this row only; both are zero at the left end
        h_left, c_left = at.zeros(2, at.width + 1, hidden), at.zeros(at.width + 1, hidden)
        inputs = at.zeros(at.width, channels)
        h_right = at.zeros(at.width, hidden)  # of the row above
        current_row = 0

        def step(x):
            nonlocal current_row
            if at.row != current_row:
                current_row = at.row
                h = c = at.zeros(hidden)
                for j in reversed(range(at.width)):
                    h, c = right(inputs[j], h_right[j], h, c)
                    h_right[j] = h
            inputs[at.column] = x
            now, before = at.row % 2, (at.row + 1) % 2
            h, c = left(x, h_left[before, at.column + 1], h_left[now, at.column], c_left[at.column])
            h_left[now, at.column + 1], c_left[at.column + 1] = h, c
            return h + h_right[at.column]

        return step


class DiagonalLSTM(Module):
    """One direction of ``DiagonalBiLSTM``, from the upper left: (H, channels, W, N) -> (H, hidden, W, N)."""

    taps = (-1, 0)

    def __init__(self, channels: int, hidden: int, groups: int = 1, *, rng: np.random.Generator):
        hidden = check.count("hidden", hidden)
        self.input = MaskedConv2d("B", channels, 4 * hidden, 1, groups, rng=rng)
        self.groups = groups
        self.weight_state = init.he(rng, (4 * hidden, hidden, 2), 2 * hidden, gain=1.0)

    def forward(self, x):
        (height, _, width, images), hidden = x.shape, self.weight_state.shape[1]
        weight, bias = input_weights(self)
        gates = weight[:, :, 0, 0] @ x.reshape(height, -1, width * images) + bias.reshape(-1, 1)  # (H, 4h, W N)
        gates = gates.reshape(height, -1, width, images)
        gates = ops.skew(gates, row=0, column=2).transpose(2, 1, 0, 3)  # (W + H - 1, 4h, H, N)
        zero = _zeros(hidden, height, images, x)
        # Diagonal t crosses the rows t - (W - 1) to t of the image.
        spans = [(max(0, t - width + 1), min(height, t + 1)) for t in range(width + height - 1)]
        h, _ = ops.lstm_scan(gates, self.weight_state, zero, zero, self.taps, spans)  # (W + H - 1, h, H, N)
        return ops.unskew(h.transpose(2, 1, 0, 3), row=0, column=2)

    def one_step(self):
        """The function from a pixel's input, the states h above and beside it and the cell beside it to its h and c."""
        (weight, bias), matrix = input_weights(self), _state_matrix(self)
        weight, bias = weight.data[:, :, 0, 0], bias.data[:, None]
        return lambda x, above, beside, c: _cell(weight @ x + bias + matrix @ xp(x).concatenate([above, beside]), c)


def input_weights(layer) -> tuple[Tensor, Tensor]:
    """Weight and bias from input to gates, in the order that ``lstm_scan`` needs.

    The output channels of the masked convolution are (group, gate, channel); the scan needs (gate, group, channel).
    """

    def by_gate(w):
        parts = w.reshape(layer.groups, 4, -1, *w.shape[1:])
        return parts.transpose(1, 0, *range(2, parts.ndim)).reshape(w.shape)

    weight, bias = layer.input.masked_weight(), layer.input.bias
    return (weight, bias) if layer.groups == 1 else (by_gate(weight), by_gate(bias))


def _state_matrix(layer):
    """(4h, h, taps) -> (4h, taps * h)"""
    w = layer.weight_state.data
    return w.transpose(0, 2, 1).reshape(w.shape[0], -1)


def _cell(a, c):
    """One step, c <- f c + i g and h <- o tanh(c): pre-activations of the gates (4h, N) and c (h, N) -> h and c."""
    sigmoid = Sigmoid().forward
    i, f, g, o = a.reshape(4, *c.shape)
    c = sigmoid(f) * c + sigmoid(i) * xp(a).tanh(g)
    return sigmoid(o) * xp(a).tanh(c), c


def _zeros(hidden, line, images, like) -> Tensor:
    return Tensor(xp(like.data).zeros((hidden, line, images), like.dtype))
