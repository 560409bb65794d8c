"""One pixel after the other: a fully visible belief network and PixelRNN, as an animation. A minute.

p(x) = prod_i p(x_i | x_<i). In a fully visible belief network each factor is a logistic regression on all pixels
before (Neal 1992). The weights of all 784 form one triangular matrix, which is trained here. PixelRNN shares one
network between all pixels and carries what came before in LSTM states: the Row LSTM goes down the image row by row,
the Diagonal BiLSTM along its diagonals from both upper corners. Both ship with tinygen. They were trained on 50,000
digits, including those on which they are measured here. The animation shows the pixels in the order in which they
are drawn and, below, the size of the last layer's state from which each is drawn.
"""

from pathlib import Path

import numpy as np
from common import TRAIN, options, run, trained
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.distributions import Bernoulli
from tinygen.nn import Module, Parameter
from tinygen.optim import Adam, cosine
from tinygen.parallel import first_rank
from tinygen.plotting import tile
from tinygen.training import evaluate, fit

CONFIG = {
    "steps": (1000, "of training the belief network, with 32 digits each"),
    "frames": (56, "of the animation", 2, 784),
    "images": (16, "drawn by each model"),
    **TRAIN,
}


class BeliefNetwork(Module):
    """p(x_i = 1 | x_<i) = sigmoid(b_i + sum_{j < i} w_ij x_j), pixels in raster order."""

    unit = "nats per image"

    def __init__(self):
        self.weight, self.bias = Parameter(np.zeros((784, 784), np.float32)), Parameter(np.zeros(784, np.float32))
        self.before = np.tri(784, k=-1, dtype=np.float32)

    def loss(self, x, rng=None):
        x = x.reshape(x.shape[0], 784).astype(np.float32)
        logits = x @ (self.weight * Tensor(to_device(self.before, x.device))).T + self.bias
        return -Bernoulli(logits).log_prob(x).sum(1).mean()

    @no_grad()
    def sample(self, n, rng):
        weight, bias = self.weight.numpy(), self.bias.numpy()
        x, u = np.zeros((n, 784), np.float32), rng.random((n, 784))
        for i in range(784):
            x[:, i] = Bernoulli(Tensor(x[:, :i] @ weight[i, :i] + bias[i])).at(u[:, i])
        return x.reshape(n, 1, 28, 28)


@no_grad()
def states(model, x):
    """The Euclidean norm of the last LSTM layer's state at each pixel, (N, 1, H, W)."""
    h = model.first(Tensor(to_device(2 * x.astype(np.float32) - 1, model.device)))
    for layer in model.layers:
        state = layer.lstm(h)
        h = h + layer.up(state)
    return ((state**2).sum(1, keepdims=True) ** 0.5).numpy()


def animate(columns, frames, path):
    """``columns``: {title: (images, states or None)}. Pixels appear in raster order, the others are grey."""
    figure = Figure(figsize=(3 * len(columns), 6), layout="constrained")
    panels = []
    for axes, (title, (images, activity)) in zip(figure.subplots(2, len(columns)).T, columns.items()):
        for ax, values, name, cmap in (
            (axes[0], images, title, "gray_r"),
            (axes[1], activity, "length of the state, bright: large", "magma"),
        ):
            ax.set_axis_off()
            if values is not None:
                ax.set_title(name, fontsize=9)
                picture = ax.imshow(np.zeros_like(tile(values, 4)), cmap=cmap, vmin=0, vmax=values.max())
                panels.append((picture, values, 0.3 * values.max() if values is activity else 0.35))
    writer = PillowWriter(fps=12)
    with writer.saving(figure, path, dpi=80):
        for done in np.linspace(0, 784, frames).astype(int):
            drawn = np.arange(784).reshape(28, 28) < done
            for picture, values, unknown in panels:
                picture.set_data(tile(np.where(drawn, values, unknown), 4))
            writer.grab_frame()
        for _ in range(12):  # the last frame stays for a second
            writer.grab_frame()


def main():
    config = options(__doc__, CONFIG)
    rng, digits = np.random.default_rng(config.seed), data.digits()
    belief = BeliefNetwork().to(config.device)
    fit(
        belief,
        digits.train_images,
        steps=config.steps,
        optimizer=Adam(belief.parameters(), lr=0.003),
        rng=rng,
        batch_size=32,
        prepare=data.binarize_dynamic,
        schedule=cosine,
        averaging=0.99,
    )
    binary = data.binarize_static(digits.test_images, seed=0)
    figure = evaluate(belief, binary, rng)
    print(f"belief network: {belief.num_parameters():,} parameters, {figure:.1f} nats per image, on new digits")
    seen = "new" if config.train else "some of its own training"
    columns = {"fully visible belief network": (belief.sample(config.images, rng), None)}
    for name, title in (("row-lstm", "Row LSTM"), ("diagonal-bilstm", "Diagonal BiLSTM")):
        model = trained(name, config)
        figure = evaluate(model, binary, rng)
        print(f"{title}: {model.num_parameters():,} parameters, {figure:.1f} nats per image, on {seen} digits")
        x = to_host(model.sample(config.images, rng))
        columns[title] = x, states(model, x)
    path = Path(config.out) / "04_pixelrnn.gif"
    if first_rank():
        animate(columns, config.frames, path)
    print(f"picture: {path.resolve()}")


if __name__ == "__main__":
    run(main)
