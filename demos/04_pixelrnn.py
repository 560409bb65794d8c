"""PixelRNN: LSTMs carry what came before, down the rows or along the diagonals, as an animation. Half a minute.

p(x) = prod_i p(x_i | x_<i), with one network for all pixels, which carries what came before in LSTM states: the Row
LSTM goes down the image row by row, the Diagonal BiLSTM along its diagonals from both upper corners. Both ship with
tinygen. They were trained on 50,000 digits, including those on which they are measured here. The animation shows the
pixels in the order in which they are drawn and, below, the size of the last layer's state from which each is drawn.
"""

from pathlib import Path

import numpy as np
from common import TRAIN, options, run, trained
from matplotlib import colormaps
from matplotlib.animation import PillowWriter
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.parallel import first_rank
from tinygen.plotting import tile
from tinygen.training import evaluate

CONFIG = {
    "frames": (40, "of the animation", 2, 784),
    "images": (16, "drawn by each model"),
    **TRAIN,
}


@no_grad()
def states(model, x):
    """The Euclidean norm of the last LSTM layer's state at each pixel, (N, 1, H, W)."""
    h = model.first(Tensor(to_device(2 * x.astype(np.float32) - 1, model.device)))
    for layer in model.layers:
        state = layer.lstm(h)
        h = h + layer.up(state)
    return ((state**2).sum(1, keepdims=True) ** 0.5).numpy()


def draw(columns, frames, path):
    """Write an animation of {title: (images, states)}, all (N, 1, 28, 28): pixels appear in the order of drawing."""
    figure = Figure(figsize=(4 * len(columns), 7.4), layout="constrained")
    panels = []
    for axes, (title, (images, sizes)) in zip(figure.subplots(2, len(columns)).T, columns.items()):
        for ax, values, name, cmap in (
            (axes[0], images, f"{title}: pixels (black: ink)", "gray_r"),
            (axes[1], sizes, f"{title}: length of the state", "magma"),
        ):
            ax.set_axis_off()
            ax.set_title(name, fontsize=9)
            colours = colormaps[cmap].with_extremes(bad="0.65")  # for NaN, the pixels that are not drawn yet
            picture = ax.imshow(np.zeros_like(tile(values, 4)), cmap=colours, vmin=0, vmax=values.max())
            panels.append((picture, values))
        figure.colorbar(picture, ax=ax, orientation="horizontal", shrink=0.8, label="Euclidean norm")
    writer = PillowWriter(fps=12)
    with writer.saving(figure, path, dpi=80):
        for done in np.linspace(0, 784, frames).astype(int):
            unknown = np.arange(784).reshape(28, 28) >= done
            for picture, values in panels:
                hidden = tile(np.broadcast_to(unknown, values.shape).astype(float), 4)
                picture.set_data(np.where(hidden, np.nan, tile(values, 4)))
            writer.grab_frame()
        for _ in range(12):  # the last frame stays for a second
            writer.grab_frame()


def main():
    config = options(__doc__, CONFIG)
    rng, columns = np.random.default_rng(config.seed), {}
    binary = data.binarize_static(data.digits().test_images, seed=0)
    seen = "new" if config.train else "some of its own training"
    for name, title in (("row-lstm", "Row LSTM"), ("diagonal-bilstm", "Diagonal BiLSTM")):
        model = trained(name, config)
        nats = evaluate(model, binary, rng)
        print(f"{title}: {model.num_parameters():,} parameters, {nats:.1f} nats per image, on {seen} digits")
        images = to_host(model.sample(config.images, rng))
        columns[title] = images, states(model, images)
    path = Path(config.out) / "04_pixelrnn.gif"
    if first_rank():
        draw(columns, config.frames, path)
    print(f"picture: {path.resolve()}")


if __name__ == "__main__":
    run(main)
