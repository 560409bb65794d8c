"""Shared by ``speed.py`` and ``gpu.py``: the models to compare, how they are timed, and the check that they agree."""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytorch_models
import torch

from tinygen.models import (
    FFJORD,
    FVSBN,
    GAN,
    GSN,
    MADE,
    NADE,
    NICE,
    RBM,
    VAE,
    Autoencoder,
    Diffusion,
    GatedPixelCNN,
    Glow,
    PixelCNN,
    PixelCNNpp,
    PixelRNN,
    PixelTransformer,
    RealNVP,
)

SLOW = 5  # seconds: a contender whose turn of two steps takes longer has one turn of one step


class Contender(NamedTuple):
    run: Callable  # run(n): n repetitions; returns their seconds, or None if the caller is to time them
    gradients: Callable | None = None  # loss and gradients as NumPy arrays, for the check
    units: float = 1  # reported units in one repetition


NETWORKS = {  # pixel models: tinygen's, and PyTorch's network
    "pixelcnn-h16": (functools.partial(PixelCNN, channels=16), pytorch_models.pixelcnn),
    "pixelcnn-h32": (functools.partial(PixelCNN, channels=32), pytorch_models.pixelcnn),
    "pixelcnn-h64": (functools.partial(PixelCNN, channels=64), pytorch_models.pixelcnn),
    "gated-pixelcnn-h32": (functools.partial(GatedPixelCNN, channels=32, layers=7), pytorch_models.gated_pixelcnn),
    "pixelrnn-row-h16": (functools.partial(PixelRNN, "row", channels=16, layers=7), pytorch_models.row_pixelrnn),
    "pixelrnn-diagonal-h16": (
        functools.partial(PixelRNN, "diagonal", channels=16, layers=7),
        pytorch_models.diagonal_pixelrnn,
    ),
    "transformer": (PixelTransformer, pytorch_models.transformer),
}
LOSSES = {  # all models: tinygen's, and PyTorch's loss
    "autoencoder": (Autoencoder, pytorch_models.autoencoder),
    "vae": (VAE, pytorch_models.vae),
    "diffusion": (Diffusion, pytorch_models.diffusion),
    "fvsbn": (FVSBN, pytorch_models.fvsbn),
    "nade": (NADE, pytorch_models.nade),
    "made": (MADE, pytorch_models.made),
    "nice": (NICE, pytorch_models.nice),
    "realnvp": (RealNVP, pytorch_models.realnvp),
    "glow": (Glow, pytorch_models.glow),
    "ffjord": (FFJORD, pytorch_models.ffjord),
    "rbm": (functools.partial(RBM, chains=0), pytorch_models.rbm),
    "gan": (GAN, pytorch_models.gan),
    "wgan": (functools.partial(GAN, form="wasserstein"), pytorch_models.wgan),
    "gsn": (GSN, pytorch_models.gsn),
    "pixelcnnpp": (PixelCNNpp, pytorch_models.pixelcnnpp),
    **{
        name: (constructor, functools.partial(pytorch_models.nats, network))
        for name, (constructor, network) in NETWORKS.items()
    },
}


def built(constructor, dtype=np.float32):
    """A model with random parameters, and copies of them. Parameters that start at zero would hide differences."""
    model, noise = constructor(rng=np.random.default_rng(0)), np.random.default_rng(1)
    for p in model.parameters():
        p.data = (p.data + 0.02 * noise.standard_normal(p.shape, np.float32)).astype(dtype)
    return model, [p.numpy() for p in model.parameters()]


def images(model, n):
    """n random images for a model, a fifth of the pixels white, the others black; or points, if it has no levels."""
    rng, shape, levels = np.random.default_rng(0), (n, *model.image_shape), getattr(model, "levels", 2)
    if levels is None:
        return rng.standard_normal(shape, np.float32)
    return (rng.random(shape) < 0.2) * np.float32(levels - 1)


def noise_of(model, n):
    """A list of what a model's loss of n images draws from ``default_rng(0)``."""
    rng, dtype = np.random.default_rng(0), model.dtype
    if isinstance(model, VAE):
        return [rng.standard_normal((n, model.latent), dtype)]
    if isinstance(model, Diffusion):
        t = 1 + ((rng.random() + np.arange(n) / n) % 1 * model.steps).astype(int)
        return [t, rng.standard_normal((n, *model.image_shape), dtype)]
    if isinstance(model, RBM):
        return [rng.random((n, sum(model.weight.shape)), np.float32) for _ in range(model.steps)]
    if isinstance(model, FFJORD):
        return [2 * rng.integers(0, 2, (n, math.prod(model.image_shape))) - 1]
    if isinstance(model, GAN):
        return [rng.standard_normal((n, model.latent), dtype), rng.random((n, 1, 1, 1))][: 1 + (model.form[0] == "w")]
    if isinstance(model, GSN):
        return [rng.random((n, *model.image_shape)) for _ in range(2 * model.walkback - 1)]
    return [rng.random((n, *model.image_shape), dtype)] if hasattr(model, "scales") else []


def layouts(name, weights):
    """{contender: PyTorch's memory format}: ``channels_last`` is for convolutions, and slower in recurrent networks."""
    both = {"pytorch": torch.contiguous_format, "pytorch channels_last": torch.channels_last}
    return both if "rnn" not in name and any(w.ndim == 4 for w in weights) else {"pytorch": both["pytorch"]}


def repeated(function):
    def run(n):
        for _ in range(n):
            function()

    return run


def sampling(constructor, network, n, ours="cpu", theirs="cpu"):
    """Sampling n images: tinygen keeps activations, PyTorch runs the whole network again for each pixel.

    PyTorch's cost is the same for each pixel, so only as many as a turn holds are timed. ``ours``, ``theirs``: devices.
    """
    model, rng = constructor(rng=np.random.default_rng(0)), np.random.default_rng(0)
    weights, (_, height, width) = [p.numpy() for p in model.parameters()], model.image_shape
    model.to(ours)
    sampler = pytorch_models.sampler(network, weights, (n, height, width), theirs)
    return {
        "tinygen": Contender(repeated(lambda: model.sample(n, rng))),
        "pytorch": Contender(sampler, units=1 / (height * width)),
    }


def agree(contenders, noise=(), tolerance=1e-4):
    """Raises ValueError unless all contenders have the loss and the gradients of the first.

    ``tolerance``: the largest difference allowed, relative to a gradient's largest entry; for losses it is 1e-4.
    """
    (first, contender), *others = contenders.items()
    loss, gradients = contender.gradients()
    for name, contender in others:
        their_loss, their_gradients = contender.gradients(*noise)
        if not abs(loss - their_loss) <= 1e-4 * abs(their_loss):
            raise ValueError(f"the loss of {first} is {loss}, that of {name} {their_loss}")
        for i, (g, t) in enumerate(zip(gradients, their_gradients, strict=True)):
            difference, largest = np.abs(g - t).max(), np.abs(t).max()
            if not difference <= tolerance * largest + 1e-6:
                raise ValueError(
                    f"gradient {i} {t.shape} of {first} and that of {name} differ by {difference:.2g}, "
                    f"its largest number is {largest:.2g}"
                )


def seconds_of(run, n, wait):
    wait()
    begun = time.perf_counter()
    own = run(n)
    wait()
    return time.perf_counter() - begun if own is None else own


def measure(contenders, rounds, turn, wait=lambda: None):
    """{contender: seconds of each turn}; contenders take turns, so that all see the machine in the same state.

    ``turn``: seconds of a turn. ``wait``: called before the clock starts and before it stops.
    """
    steps, seconds = {}, {name: [] for name in contenders}
    for name, contender in contenders.items():
        contender.run(1)  # warms up
        once = seconds_of(contender.run, 1, wait)
        if once < 1:  # subtract the fixed cost of a turn, such as forking workers
            five = seconds_of(contender.run, 5, wait)
            once = max(five / 20, (five - once) / 4)
        steps[name] = 1 if 2 * once > SLOW else max(2, round(turn / once))
    for i in range(rounds):
        for name, (run, _, units) in contenders.items():
            if i == 0 or steps[name] > 1:
                seconds[name].append(seconds_of(run, steps[name], wait) / steps[name] / units)
    return seconds


def summaries(work, seconds):
    """The rows of a work, with the ratio of medians if tinygen is among the contenders."""
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    for name, median in medians.items():
        yield {
            "work": work,
            "contender": name,
            "median_s": median,
            "min_s": min(seconds[name]),
            "ratio": medians["tinygen"] / median if "tinygen" in medians else None,
            "turns": len(seconds[name]),
        }
