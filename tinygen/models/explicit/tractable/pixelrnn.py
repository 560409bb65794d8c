"""PixelRNN: the chain rule over pixels with LSTMs that scan the image (van den Oord et al. 2016, 3.1 to 3.3)."""

import numpy as np

from tinygen import check, ops
from tinygen.models.explicit.tractable.pixel_network import PixelNetwork
from tinygen.models.recipe import Recipe
from tinygen.nn import DiagonalBiLSTM, Dropout, MaskedConv2d, Module, RowLSTM

KINDS = {"row": RowLSTM, "diagonal": DiagonalBiLSTM}


class PixelRNN(PixelNetwork):
    """A convolution with mask A, residual LSTM layers, twice (ReLU, 1x1 mask B), the second of which gives the logits.

    ``kind``: ``"row"`` (Row LSTM) or ``"diagonal"`` (Diagonal BiLSTM); ``image_shape`` (C, H, W); ``levels``: values
    per pixel; ``channels`` h: the LSTMs' units, half the stream's channels; ``layers``: number of LSTMs;
    ``first_kernel``: the convolution's kernel size, 7 in the paper; ``dropout``: probability, on each LSTM's output but
    not on its state (Zaremba et al. 2014; not in the paper). As in PixelCNN the residual branches and the logits start
    at zero. Raises ValueError for another kind, channels that are not a multiple of C, an even kernel size, or a number
    that is too small.

    A stack of Diagonal BiLSTM layers sees every earlier pixel of its input. But its input is the first convolution,
    whose mask A hides each pixel at its own position. So beyond the reach of that kernel a pixel does not see the last
    pixel of the row above, at which the scan from the right begins. This is the paper's construction.
    """

    def __init__(
        self,
        kind="row",
        image_shape=(1, 28, 28),
        levels=2,
        channels=16,
        layers=7,
        first_kernel=7,
        dropout=0.0,
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, channels)
        check.choice("kind", kind, *KINDS)
        groups, channels = self.image_shape[0], self.channels
        stream = 2 * channels
        first_kernel = check.count("first_kernel", first_kernel, odd=True)
        self.first = MaskedConv2d("A", groups, stream, first_kernel, groups, rng=rng)
        self.layers = [
            ResidualLSTM(KINDS[kind], channels, groups, dropout, rng=rng)
            for _ in range(check.count("layers", layers, 0))
        ]
        self.hidden = MaskedConv2d("B", stream, stream, 1, groups, rng=rng, gain=2.0)
        self.last = MaskedConv2d("B", stream, groups * self.outputs, 1, groups, rng=rng, gain=0.0)

    def network(self, x, rng=None, labels=None, at=None):
        h = self.first(x, at)
        for layer in self.layers:
            h = layer(h, rng, at)
        h = self.hidden(ops.relu(h), at)
        return self.last(ops.relu(h), at)


class ResidualLSTM(Module):
    """h + (LSTM over the image 2h -> h, dropout, 1x1 h -> 2h) (figure 5, right)."""

    def __init__(self, kind, channels, groups, dropout, *, rng):
        self.lstm = kind(2 * channels, channels, groups, rng=rng)
        self.dropout = Dropout(dropout)
        self.up = MaskedConv2d("B", channels, 2 * channels, 1, groups, rng=rng, gain=0.0)

    def forward(self, h, rng=None, at=None):
        y = self.dropout(self.lstm(h, at), rng)
        return h + self.up(y, at)


RECIPES = {  # published: van den Oord et al. 2016, table 4
    "row-lstm": Recipe(
        PixelRNN,
        {"kind": "row", "channels": 24, "layers": 7, "first_kernel": 15, "dropout": 0.1},
        protocol="static",
        steps=(21_000,),
        published="80.54",
    ),
    "diagonal-bilstm": Recipe(
        PixelRNN,
        {"kind": "diagonal", "channels": 16, "layers": 7, "first_kernel": 15},
        protocol="static",
        steps=(15_000, 9000),
        published="79.20",
    ),
}
