"""Time of a training step and of sampling, tinygen against PyTorch on the same CPU. Needs the extra ``bench``.

A step is forward, backward and Adam on 64 images of 28 x 28, with the same weights on both sides; before timing, loss
and gradients are compared. The contenders take turns in one run; given are medians, minima and the ratio of medians.

    python benchmarks/speed.py                        # everything, about five minutes
    python benchmarks/speed.py --only step/pixelcnn   # names that contain this
    python benchmarks/speed.py --json speed.json
"""

import argparse
import json
import os
import platform
import statistics
import time

import numpy as np
import pytorch_models
import torch

from tinygen import grad
from tinygen.models import VAE, Autoencoder, PixelCNN, PixelRNN
from tinygen.optim import Adam
from tinygen.training import fit

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
BATCH = 64
STEPS = 4

MODELS = {  # work: tinygen's model, PyTorch's loss
    "step/autoencoder": (lambda rng: Autoencoder(rng=rng), pytorch_models.autoencoder),
    "step/vae": (lambda rng: VAE(rng=rng), pytorch_models.vae),
    "step/pixelcnn-h16": (lambda rng: PixelCNN(width=16, rng=rng), pytorch_models.pixelcnn),
    "step/pixelcnn-h32": (lambda rng: PixelCNN(width=32, rng=rng), pytorch_models.pixelcnn),
    "step/pixelcnn-h64": (lambda rng: PixelCNN(width=64, rng=rng), pytorch_models.pixelcnn),
    "step/pixelrnn-row-h16": (
        lambda rng: PixelRNN("row", width=16, layers=7, rng=rng),
        lambda w, x: pytorch_models.pixelrnn(w, x, pytorch_models.row_lstm),
    ),
    "step/pixelrnn-diagonal-h16": (
        lambda rng: PixelRNN("diagonal", width=16, layers=7, rng=rng),
        lambda w, x: pytorch_models.pixelrnn(w, x, pytorch_models.diagonal_bilstm),
    ),
}


def in_torch_order(module):
    """A module's parameters in the order in which the PyTorch code takes them: layer by layer, own ones last."""
    own = []
    for _, child in module.children():
        if hasattr(child, "children"):
            yield from in_torch_order(child)
        else:
            own.append(child)
    yield from own


def check(model, loss, weights, x):
    """Both sides compute the same loss and gradients from the same weights (relative 1e-4)."""
    rng = np.random.default_rng(0)
    ours = model.loss(x, np.random.default_rng(0))
    gradients = grad(ours, list(in_torch_order(model)))
    noise = [torch.tensor(rng.standard_normal((len(x), model.latent), np.float32))] if isinstance(model, VAE) else []
    theirs = loss(iter(weights), torch.tensor(x), *noise)
    theirs.backward()
    assert abs(ours.item() - theirs.item()) <= 1e-4 * abs(theirs.item()), (ours.item(), theirs.item())
    for g, w in zip(gradients, weights, strict=True):
        scale = float(w.grad.abs().max())
        assert np.abs(g.numpy() - w.grad.numpy()).max() <= 1e-4 * scale + 1e-6, (w.shape, scale)


def steps(work, x):
    """{contender: function that makes STEPS training steps}"""
    constructor, loss = MODELS[work]
    model = constructor(np.random.default_rng(0))
    noise = np.random.default_rng(1)
    for p in model.parameters():  # some start at zero, which would hide differences
        p.data += 0.02 * noise.standard_normal(p.shape, np.float32)
    weights = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in in_torch_order(model)]
    check(model, loss, weights, x)
    ours, theirs = Adam(model.parameters(), 1e-4), torch.optim.Adam(weights, 1e-4)

    def tinygen():
        fit(model, x, steps=STEPS, optimizer=ours, rng=noise, batch_size=BATCH, progress=False)

    def pytorch(batch):
        for _ in range(STEPS):
            theirs.zero_grad()
            loss(iter(weights), batch).backward()
            theirs.step()

    plain, last = torch.tensor(x), torch.tensor(x).to(memory_format=torch.channels_last)
    contenders = {"tinygen": tinygen, "pytorch": lambda: pytorch(plain)}
    if "rnn" not in work:
        contenders["pytorch channels_last"] = lambda: pytorch(last)
    return contenders, STEPS


def sampling(x):
    """64 images of 28 x 28 from PixelCNN, 7 blocks, h = 32: kept activations against the network run for each pixel."""
    model = PixelCNN(width=32, rng=np.random.default_rng(0))
    weights = [torch.tensor(p.numpy()) for p in in_torch_order(model)]
    pixels = 28  # the naive loop costs the same for each pixel: one row of 28 is timed

    def naive():
        images = torch.zeros(BATCH, 1, 28, 28)
        with torch.no_grad():
            for i in range(pixels):
                pytorch_models.pixelcnn(iter(weights), images)  # its logits decide pixel i
                images[:, 0, 0, i] = (torch.rand(BATCH) < 0.5).float()

    return {"tinygen": lambda: model.sample(BATCH, np.random.default_rng(0)), "pytorch": naive}, {
        "pytorch": pixels / 784
    }


def measure(contenders, per, rounds):
    """Seconds of each contender, one round after the other; ``per``: by what to divide, for all or for some of them."""
    times = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            elapsed = (time.perf_counter() - begun) / (per.get(name, 1) if isinstance(per, dict) else per)
            if i:  # the first round warms up
                times[name].append(elapsed)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="measure the works whose name contains this")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--json", help="file for the rows")
    arguments = parser.parse_args()
    torch.set_num_threads(CORES)
    print(f"{platform.machine()}, {CORES} cores; numpy {np.__version__}, torch {torch.__version__}, batch {BATCH}")
    print(f"{'work':<28} {'contender':<22} {'median ms':>10} {'min ms':>10} {'tinygen/it':>10}")
    x = (np.random.default_rng(0).random((BATCH, 1, 28, 28)) < 0.2).astype(np.float32)
    rows = []
    for work in [*MODELS, "sample/pixelcnn-h32"]:
        if arguments.only not in work:
            continue
        contenders, per = sampling(x) if work.startswith("sample") else steps(work, x)
        times = measure(contenders, per, arguments.rounds)
        medians = {name: statistics.median(t) for name, t in times.items()}
        for name, t in times.items():
            ratio = medians["tinygen"] / medians[name]
            rows.append({"work": work, "contender": name, "median_s": medians[name], "min_s": min(t), "ratio": ratio})
            print(
                f"{work:<28} {name:<22} {1e3 * medians[name]:>10.1f} {1e3 * min(t):>10.1f} {ratio:>10.3f}", flush=True
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
