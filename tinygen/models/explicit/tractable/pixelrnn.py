"""PixelRNN: the chain rule over pixels with LSTMs that scan the image (van den Oord et al. 2016, 3.1 to 3.3)."""

import numpy as np

from tinygen import check, ops
from tinygen.models.explicit.tractable.autoregressive import Autoregressive
from tinygen.nn import DiagonalBiLSTM, Dropout, MaskedConv2d, Module, RowLSTM

KINDS = {"row": RowLSTM, "diagonal": DiagonalBiLSTM}


class PixelRNN(Autoregressive):
    """A convolution with mask A, residual LSTM layers, twice (ReLU, 1x1 mask B), the second of which gives the logits.

    ``kind``: ``"row"`` (Row LSTM) or ``"diagonal"`` (Diagonal BiLSTM); ``image_shape`` (C, H, W);
    ``levels`` values a pixel; ``width`` h: the LSTMs' units, half the stream's channels; ``layers``: how many;
    ``first``: the convolution's kernel size, 7 in the paper; ``dropout``: probability, of each LSTM's output where it
    leaves the scan (Zaremba et al. 2014; not in the paper). As in PixelCNN the residual branches and the logits start
    at zero. Raises ValueError for another kind, a width that is no multiple of C, an even kernel size, or a number that
    is too small.

    A stack of Diagonal BiLSTM layers sees every earlier pixel of its input. But its input is the first convolution,
    whose mask A hides each pixel at its own position. So beyond the reach of that kernel a pixel does not see the last
    pixel of the row above, at which the scan from the right begins. That is the paper's construction.
    """

    def __init__(
        self,
        kind="row",
        image_shape=(1, 28, 28),
        levels=2,
        width=16,
        layers=7,
        first=7,
        dropout=0.0,
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, width)
        check.choice("kind", kind, *KINDS)
        groups, width = self.image_shape[0], self.width
        stream = 2 * width
        first = check.count("first", first, odd=True)
        self.first = MaskedConv2d("A", groups, stream, first, groups, rng=rng)
        self.layers = [
            ResidualLSTM(KINDS[kind], width, groups, dropout, rng=rng) for _ in range(check.count("layers", layers, 0))
        ]
        self.hidden = MaskedConv2d("B", stream, stream, 1, groups, rng=rng, scale=2.0)
        self.last = MaskedConv2d("B", stream, groups * self.outputs, 1, groups, rng=rng, scale=0.0)

    def network(self, x, labels=None, rng=None, at=None):
        h = self.first(x, at)
        for layer in self.layers:
            h = layer(h, rng, at)
        h = self.hidden(ops.relu(h), at)
        return self.last(ops.relu(h), at)


class ResidualLSTM(Module):
    """h + (LSTM over the image 2h -> h, dropout, 1x1 h -> 2h) (figure 5, right)."""

    def __init__(self, kind, width, groups, dropout, *, rng):
        self.lstm = kind(2 * width, width, groups, rng=rng)
        self.dropout = Dropout(dropout)
        self.up = MaskedConv2d("B", width, 2 * width, 1, groups, rng=rng, scale=0.0)

    def forward(self, h, rng=None, at=None):
        y = self.dropout(self.lstm(h, at), rng)
        return h + self.up(y, at)
