"""The layers of PixelCNN, Gated PixelCNN and PixelRNN at one pixel, with what later pixels will need of it kept.

Sampling draws H * W pixels one after the other; running the network on the whole image for each repeats almost all of
its work H * W times. Here each layer is evaluated only at the new pixel. Activations are *columns* (channels, N) with
the images last. Columns of neighbouring pixels are contiguous, (position, channels, N): reshaped, without a copy, they
are the right factor of one matrix product for all taps in a row of the kernel.
"""

from tinygen.backend import xp
from tinygen.nn.conv import MaskedConv2d
from tinygen.nn.gated import Gate, VerticalStack
from tinygen.nn.module import Dropout
from tinygen.nn.recurrent import DiagonalBiLSTM, RowLSTM, input_weights
from tinygen.ops.elementwise import Sigmoid
from tinygen.tensor import Tensor


class PixelCache:
    """``cache.move(row, column)``, then ``cache(layer, h)`` for each layer in the network's order, h a Tensor
    (channels, N). A vertical stack gives (layers, 2 width, N), other layers (channels, N)."""

    def __init__(self, n: int, image_shape, like):
        self.n, (_, self.height, self.width) = n, image_shape
        self.like = like  # an array of the dtype and on the device wanted
        self.layers, self.readers = {}, []

    def move(self, row: int, column: int) -> None:
        """The pixel that comes next. Pixels come in raster order; one may be evaluated several times (R, G, B)."""
        self.row, self.column = row, column

    def __call__(self, layer, h: Tensor, **given) -> Tensor:
        if isinstance(layer, Dropout):
            return h  # it is for learning
        if layer not in self.layers:
            self.layers[layer] = KINDS[type(layer)](layer, self)
            if isinstance(layer, VerticalStack) or getattr(layer, "kind", None) == "A":
                self.readers.append(self.layers[layer])
        return Tensor(self.layers[layer](h.data, self.row, self.column, **given))

    def input(self, values) -> None:
        """The pixel's final values, which the layers that read the image see from the next pixel on.

        Only these: nothing else that was kept at this pixel depends on its last colour.
        """
        for layer in self.readers:
            layer.store(values, self.row, self.column)

    def zeros(self, *shape):
        return xp(self.like).zeros((*shape, self.n), self.like.dtype)


class ConvPixel:
    """A masked convolution: its inputs are kept, zero around the image."""

    def __init__(self, layer, cache, weights=None):
        weight, bias = weights or (layer.masked_weight(), layer.bias)
        self.bias = bias.data[:, None]
        self.above, self.left = layer.padding
        # For each row of the kernel: where its kept taps start, how many, and their weights (out, taps * in)
        self.rows = []
        for i, kept in enumerate(layer.mask):
            if kept.any():
                taps = int(kept.sum())  # the kept taps of a row come first
                matrix = weight.data[:, :, i, :taps].transpose(0, 2, 1).reshape(weight.shape[0], -1)
                self.rows.append((i, taps, matrix))
        self.pointwise = layer.mask.size == 1
        if not self.pointwise:
            shape = cache.height + self.above, cache.width + 2 * self.left, weight.shape[1]
            self.inputs = cache.zeros(*shape)

    def store(self, h, row, column):
        if not self.pointwise:
            self.inputs[row + self.above, column + self.left] = h

    def __call__(self, h, row, column):
        if self.pointwise:
            return self.rows[0][2] @ h + self.bias
        self.store(h, row, column)
        return self.at(row, column)

    def at(self, row, column):
        """Of the inputs that are stored."""
        y = self.bias
        for i, taps, matrix in self.rows:
            y = y + matrix @ self.inputs[row + i, column : column + taps].reshape(matrix.shape[1], -1)
        return y


class GatePixel:
    """A gate; its classes are looked up once."""

    def __init__(self, layer, cache):
        self.layer, self.of_class = layer, None

    def __call__(self, x, row, column, labels=None):
        if labels is not None:
            if self.of_class is None:
                self.of_class = self.layer.weight.data[labels].T
            x = x + self.of_class
        f, g = x.reshape(self.layer.groups, 2, -1, x.shape[1]).swapaxes(0, 1)
        return (xp(x).tanh(f) * Sigmoid().forward(g)).reshape(-1, x.shape[1])


class VerticalPixel:
    """A vertical stack. It needs whole rows, but none below the last: so when a row begins, all of it is computed
    from the rows above, again one pixel's work a pixel.
    """

    def __init__(self, layer, cache):
        self.convs = [ConvPixel(conv, cache) for conv in layer.convs]
        self.gates = [GatePixel(gate, cache) for gate in layer.gates]
        self.links = [(link.weight.data[:, :, 0, 0], link.bias.data[:, None]) for link in layer.links]
        self.position = layer.position_bias(cache.height, cache.width).data[..., None]
        # Of this row, for each layer
        self.to_horizontal = cache.zeros(cache.width, len(self.links), self.links[0][1].size)
        self.row = None

    def store(self, image, row, column):
        self.convs[0].store(image, row, column)

    def __call__(self, image, row, column, labels=None):
        if row != self.row:
            for i, (weight, bias) in enumerate(self.links):
                for j in range(len(self.to_horizontal)):
                    y = self.convs[i].at(row, j) + self.position[i, :, row, j]
                    self.to_horizontal[j, i] = weight @ y + bias
                    if i < len(self.gates):
                        self.convs[i + 1].store(self.gates[i](y, row, j, labels), row, j)
            self.row = row
        return self.to_horizontal[column]


class RowPixel:
    """A Row LSTM: the states of the row above and of this one are kept."""

    def __init__(self, layer, cache):
        self.input = ConvPixel(layer.input, cache, input_weights(layer))
        self.matrix = _state_matrix(layer)
        hidden = layer.h0.size
        self.h = cache.zeros(2, cache.width + 2, hidden)  # this row's and the other's in turn, zero at both ends
        self.c = cache.zeros(2, cache.width, hidden)
        self.h[1, 1:-1] = layer.h0.data[:, None]
        self.c[1] = layer.c0.data[:, None]

    def __call__(self, x, row, column):
        now, before = row % 2, (row + 1) % 2
        a = self.input(x, row, column) + self.matrix @ self.h[before, column : column + 3].reshape(
            self.matrix.shape[1], -1
        )
        h, c = _cell(a, self.c[before, column])
        self.h[now, column + 1], self.c[now, column] = h, c
        return h


class DiagonalPixel:
    """A Diagonal BiLSTM. From the left: the states to the left and above are kept.

    From the right: a pixel's state needs its whole row, but is first asked for one row further down. So when a row
    begins, the row above is scanned from the right: again one pixel's work a pixel.
    """

    def __init__(self, layer, cache):
        self.left, self.right = ((*input_weights(d), _state_matrix(d)) for d in (layer.left, layer.right))
        _, hidden, _ = layer.left.weight_state.shape
        # h: this row's and the other's in turn; c: this row's alone. Zero at the left end.
        self.h_left = cache.zeros(2, cache.width + 1, hidden)
        self.c_left = cache.zeros(cache.width + 1, hidden)
        self.inputs = cache.zeros(cache.width, layer.left.input.weight.shape[1])
        self.h_right = cache.zeros(cache.width, hidden)  # of the row above, once scanned
        self.scanned = 0

    def __call__(self, x, row, column):
        if row != self.scanned:
            h = c = xp(x).zeros_like(self.h_right[0])
            for j in reversed(range(len(self.inputs))):
                h, c = self._step(self.right, self.inputs[j], self.h_right[j], h, c)
                self.h_right[j] = h
            self.scanned = row
        self.inputs[column] = x
        now, before = row % 2, (row + 1) % 2
        above, beside = self.h_left[before, column + 1], self.h_left[now, column]
        h, c = self._step(self.left, x, above, beside, self.c_left[column])
        self.h_left[now, column + 1], self.c_left[column + 1] = h, c
        return h + self.h_right[column]

    def _step(self, weights, x, above, beside, c):
        weight, bias, matrix = weights
        a = weight.data[:, :, 0, 0] @ x + bias.data[:, None] + matrix @ xp(x).concatenate([above, beside])
        return _cell(a, c)


def _state_matrix(layer):
    """(4h, h, taps) -> (4h, taps * h)"""
    w = layer.weight_state.data
    return w.transpose(0, 2, 1).reshape(w.shape[0], -1)


def _cell(a, c):
    """One LSTM step: gates (4h, N) and cell (h, N) -> state and cell."""
    sigmoid = Sigmoid().forward
    i, f, g, o = a.reshape(4, *c.shape)
    c = sigmoid(f) * c + sigmoid(i) * xp(a).tanh(g)
    return sigmoid(o) * xp(a).tanh(c), c


KINDS = {
    MaskedConv2d: ConvPixel,
    Gate: GatePixel,
    VerticalStack: VerticalPixel,
    RowLSTM: RowPixel,
    DiagonalBiLSTM: DiagonalPixel,
}
