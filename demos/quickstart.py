"""Four models learn handwritten digits: autoencoder, VAE, PixelCNN, PixelRNN. Two to four minutes on two cores.

Trains each on 4,500 real MNIST digits that ship with tinygen, prints how well it does on 500 others, and saves one
figure with what it has learned to draw. Binary models see every training digit with its pixels drawn anew each time
(dynamic binarization) and are tested on one fixed draw of the test digits.

    python demos/quickstart.py               # two to four minutes
    python demos/quickstart.py --minutes 10  # better samples
    mpiexec -n 2 python -m mpi4py demos/quickstart.py  # with two processes, here or on several machines
"""

import time
from functools import partial

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad, pretrained
from tinygen.backend import to_device, to_host
from tinygen.models import VAE, Autoencoder, PixelCNN, PixelRNN
from tinygen.optim import Adam, Muon, cosine
from tinygen.parallel import first_rank, one_blas_thread
from tinygen.plotting import draw_images, manifold
from tinygen.training import evaluate, fit

MUON = partial(Muon, lr=0.01, weight_decay=0.1)
CONFIG = {"minutes": (1.5, "training time of all four on two cores; tests, samples and the picture come on top")}
MODELS = {  # constructor, steps in 1.5 minutes (they grow with --minutes), optimizer
    "Autoencoder": (lambda rng: Autoencoder(code=32, rng=rng), 1200, partial(Adam, lr=3e-3)),
    "VAE": (lambda rng: VAE(latent=2, rng=rng), 1600, partial(Adam, lr=4e-3)),
    "PixelCNN": (lambda rng: PixelCNN(channels=16, blocks=3, kernel=5, first_kernel=15, rng=rng), 900, MUON),
    "PixelRNN": (lambda rng: PixelRNN("row", channels=16, layers=3, first_kernel=15, rng=rng), 620, MUON),
}


def grey(images, rng=None):
    """Grey values from 0 to 1, for the autoencoder."""
    return images.astype(np.float32) / 255


def train(name, digits, config):
    """Train a model. Returns the model and the seconds that training took."""
    constructor, steps, optimizer = MODELS[name]
    rng = np.random.default_rng(config.seed)
    model = constructor(rng).to(config.device)
    begun = time.perf_counter()
    fit(
        model,
        digits.train_images,
        steps=max(1, round(steps * config.minutes / CONFIG["minutes"][0])),
        optimizer=optimizer(model.parameters()),
        rng=rng,
        batch_size=16,
        prepare=grey if name == "Autoencoder" else data.binarize_dynamic,
        schedule=cosine,
        averaging=0.995,
    )
    return model, time.perf_counter() - begun


def test(name, model, digits, binary):
    """The test result as text, with its unit and protocol."""
    rng = np.random.default_rng(1)
    if name == "Autoencoder":
        return f"{evaluate(model, digits.test_images, rng, grey):6.2f} squared error per image, grey values 0 to 1"
    if name == "VAE":
        binary = to_device(binary, model.device)
        nats = -float(model.log_likelihood(binary, rng, samples=100).mean())
        return f"{nats:6.1f} nats per image (upper bound from 100 importance-weighted samples)"
    return f"{evaluate(model, binary, rng):6.1f} nats per image, exact"


def sampling_rate(model):
    """Images sampled per second."""
    if isinstance(model, Autoencoder):
        return "-"  # it has no distribution over codes to sample from
    begun = time.perf_counter()
    to_host(model.sample(64, np.random.default_rng(0)))  # to_host waits for the device
    return f"{64 / (time.perf_counter() - begun):.0f}"


@no_grad()
def draw(models, digits, binary, rng):
    """One figure with the data, and samples or reconstructions of each model."""
    figure = Figure(figsize=(16, 7), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06, hspace=0.04)
    axes = figure.subplots(2, 5).flat

    def pairs(model, images):
        """Images and their reconstructions, side by side."""
        drawn = model.reconstruct(Tensor(images).to(model.device)).numpy()
        return np.stack([images, np.clip(drawn, 0, 1)], axis=1).reshape(-1, 1, 28, 28)

    vae, cnn, rnn = models["VAE"], models["PixelCNN"], models["PixelRNN"]
    upper = np.arange(28)[:, None] < 14  # broadcasts to (N, 1, 28, 28)
    chosen = binary[:10, None]  # (10, 1, 1, 28, 28)
    given = np.repeat(binary[:10], 6, axis=0)
    completed = to_host(cnn.sample(60, rng, given=given, mask=upper)).reshape(10, 6, 1, 28, 28)
    rows = np.concatenate([chosen * upper, completed, chosen], axis=1)
    draw_images(next(axes), digits.test_images[:100], 10, "a  data: 100 test digits")
    draw_images(
        next(axes),
        pairs(models["Autoencoder"], grey(digits.test_images[:40])),
        8,
        "b  autoencoder: digit, reconstruction",
    )
    draw_images(next(axes), pairs(vae, binary[:40].astype(np.float32)), 8, "c  VAE, 2-d z: digit, reconstruction")
    draw_images(next(axes), vae.sample_means(100, rng), 10, "d  VAE: samples (pixel probabilities)")
    draw_images(next(axes), manifold(vae, 12), 12, "e  VAE: plane of z, by normal quantiles")
    draw_images(next(axes), cnn.sample(100, rng), 10, "f  PixelCNN: samples")
    draw_images(next(axes), rnn.sample(100, rng), 10, "g  PixelRNN (Row LSTM): samples")
    draw_images(next(axes), rows.reshape(-1, 1, 28, 28), 8, "h  PixelCNN: given half, 6 completions, truth")
    for title, name in (("i  Row LSTM, 42 minutes", "row-lstm"), ("j  Diagonal BiLSTM, 66 minutes", "diagonal-bilstm")):
        shipped = pretrained(name).to(vae.device)
        draw_images(next(axes), shipped.sample(100, rng), 10, f"{title} (shipped)")
    return figure


def main():
    config = options(__doc__, CONFIG)
    digits = data.digits()
    binary = data.binarize_static(digits.test_images, seed=0)
    models, lines = {}, []
    for name in MODELS:
        print(f"training {name} ...", flush=True)
        models[name], seconds = train(name, digits, config)
        model = models[name]
        figure = test(name, model, digits, binary)
        rate = sampling_rate(model) if first_rank() else "-"
        lines.append((name, f"{model.num_parameters():,}", f"{seconds:.0f}", rate, figure))
    print(f"\n{'model':<12} {'parameters':>10} {'train s':>8} {'samples/s':>10}   on 500 test digits")
    for name, size, seconds, rate, figure in lines:
        print(f"{name:<12} {size:>10} {seconds:>8} {rate:>10}   {figure}")
    if first_rank():
        with one_blas_thread:  # small products are slower with several threads, above all beside MPI's other ranks
            figure = draw(models, digits, binary, np.random.default_rng(config.seed))
        save(figure, config.out, "quickstart")


if __name__ == "__main__":
    run(main)
