"""What ``gpu.py`` measures. Devices (``"cuda"``, ``"cpu"``) are arguments, so that tests run the code without a GPU."""

import collections
import functools
import gc
import json
import tempfile
from pathlib import Path

import numpy as np
import pytorch_models
import torch
from contenders import (
    LOSSES,
    NETWORKS,
    Contender,
    agree,
    built,
    images,
    layouts,
    measure,
    noise_of,
    repeated,
    sampling,
    summaries,
)
from torch.profiler import ProfilerActivity, profile

from tinygen import grad
from tinygen.backend import to_device
from tinygen.optim import Adam
from tinygen.training import fit

SAMPLED = ["vae", "pixelcnn-h32", "gated-pixelcnn-h32", "pixelrnn-row-h16", "pixelrnn-diagonal-h16"]
MODELS = ["autoencoder", *SAMPLED, "made", "realnvp", "glow", "ffjord"]
ROUNDS, TURN = 3, 1  # turns of a contender, and the seconds of each
TOLERANCE = 1e-3  # of a gradient's largest entry: in float32 a ReLU's input may round to either side of zero
STEPS = 3  # 3 and 6 steps are counted: few enough that ``fit`` reads the loss in the last step only


# -- time


def trainer(model, x):
    """``run(n)``: n training steps on the same images; ``gradients()``: loss and gradients as NumPy arrays."""
    adam, x = Adam(model.parameters(), 1e-4), to_device(x, model.device)

    def backward(rng):
        loss = model.loss(x, rng)
        for p, g in zip(adam.parameters, grad(loss, adam.parameters)):
            p.grad = g
        return loss

    def gradients():
        loss = backward(np.random.default_rng(0))
        return loss.item(), [p.grad.numpy() for p in adam.parameters]

    def run(n):
        rng = np.random.default_rng(0)
        for _ in range(n):
            backward(rng)
            adam.step()

    return Contender(run, gradients)


def training(name, batch, ours="cuda", theirs="cuda"):
    """{contender: a training step}, from the same weights on the same images. Raises ValueError if gradients differ."""
    release()
    constructor, loss = LOSSES[name]
    model, weights = built(constructor)
    x = images(model, batch)
    contenders = {"tinygen": trainer(model.to(ours), x)}
    for contender, layout in layouts(name, weights).items():
        contenders[contender] = Contender(*pytorch_models.trainer(loss, weights, x, layout, theirs))
    agree(contenders, noise_of(model, batch), TOLERANCE)
    return contenders


def drawing(name, n, ours="cuda", theirs="cuda"):
    """{contender: sampling n images}."""
    release()
    if name in NETWORKS:
        return sampling(*NETWORKS[name], n, ours, theirs)
    rng = np.random.default_rng(0)
    model, weights = built(LOSSES[name][0])
    model.to(ours)
    return {
        "tinygen": Contender(repeated(lambda: model.sample_means(n, rng))),
        "pytorch": Contender(pytorch_models.vae_sampler(weights, n, theirs)),
    }


def rows_of(work, contenders, rounds=ROUNDS, turn=TURN, wait=torch.cuda.synchronize):
    """The rows of a work. ``wait`` waits for the device; PyTorch's function waits for CuPy's kernels too."""
    peaks = {name: peak(name, contender.run) for name, contender in contenders.items()}
    for row in summaries(work, measure(contenders, rounds, turn, wait)):
        yield {**row, "peak_bytes": peaks[row["contender"]]}


# -- memory


def release():
    """Free unused memory, which each library would keep from the other. Returns CuPy's memory pool."""
    import cupy

    gc.collect()
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    torch.cuda.empty_cache()
    return pool


def peak(contender, run):
    """The most bytes that a step reserves: in CuPy's pool, which returns none by itself, or in PyTorch's allocator."""
    pool = release()
    torch.cuda.reset_peak_memory_stats()
    run(1)
    return pool.total_bytes() if contender == "tinygen" else torch.cuda.max_memory_reserved()


# -- copies and waits


def profiled(function):
    """The counts of ``tally`` while ``function`` runs, as CUDA reports them for the whole process, CuPy included."""
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            function()
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return tally(json.loads(path.read_text())["traceEvents"])


def tally(events):
    """{kind: number} of the copies, waits and kernels among the events of a profiler's trace."""
    counts = collections.Counter()
    for event in events:
        category, name = event.get("cat"), event["name"]
        if category == "kernel":
            counts["kernels"] += 1
        elif category == "gpu_memcpy":
            counts["copies to the device"] += "HtoD" in name
            counts["copies from it"] += "DtoH" in name
        elif category in ("cuda_runtime", "cuda_driver"):  # cudaMemcpy waits for the device, cudaMemcpyAsync does not
            counts["waits"] += "Synchronize" in name or name.split("_")[0] == "cudaMemcpy"
    return counts


def counted(name, batch, device="cuda", count=profiled):
    """{kind: number} in a step of ``fit`` that does not read the loss; None if the profiler sees no kernels."""
    release()
    model, _ = built(LOSSES[name][0])
    x, adam = images(model, batch), Adam(model.to(device).parameters(), 1e-4)

    def train(steps):
        rng = np.random.default_rng(0)
        fit(model, x, steps=steps, optimizer=adam, rng=rng, batch_size=batch, progress=False)

    train(2)  # compiles kernels
    once, twice = (count(functools.partial(train, steps)) for steps in (STEPS, 2 * STEPS))
    if not twice["kernels"] > once["kernels"]:
        return None
    names = ("copies to the device", "copies from it", "waits", "kernels")
    return {what: (twice[what] - once[what]) / STEPS for what in names}
