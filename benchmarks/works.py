"""What ``speed.py`` measures: ``WORKS``, each a function that builds its contenders.

tinygen makes the C library keep freed memory, in the whole process, so the other contenders benefit too.
"""

import functools
import multiprocessing
import subprocess
import sys

import autograd_models
import dezero_models
import numpy as np
import pytorch_models
import torch
import torch.nn.functional as F
from contenders import LOSSES, NETWORKS, Contender, agree, built, images, layouts, noise_of, repeated, sampling
from machine import BLAS, CORES, memory

from tinygen import Tensor, grad, ops
from tinygen.models import PixelCNN
from tinygen.nn import LSTM, Conv2d, Linear, MaskedConv2d, Module, UpConv2d
from tinygen.optim import Adam
from tinygen.parallel import SHARD, keep_memory
from tinygen.training import fit

BATCH = 64
WORKERS = min(CORES, BATCH // SHARD)  # of tinygen in a step
torch.set_num_threads(CORES)


# -- training steps

OTHERS = {  # beside PyTorch
    "autoencoder": {"dezero": dezero_models.autoencoder},
    "pixelcnn-h16": {"dezero": dezero_models.pixelcnn, "autograd": autograd_models.pixelcnn},
    "pixelcnn-h32": {"dezero": dezero_models.pixelcnn},
}
STEPS = {  # work: tinygen's model, the loss in the other libraries
    f"step/{name}": (constructor, {"pytorch": loss, **OTHERS.get(name, {})})
    for name, (constructor, loss) in LOSSES.items()
    if not name.startswith("gated")  # on a GPU only
}
POINTS = 256  # in a step of FFJORD
TRAINERS = {"dezero": dezero_models.trainer, "autograd": autograd_models.trainer}


def trainer(model, x):
    """``run(n, workers)``: n training steps; ``gradients()``: loss and gradients.

    ``run`` returns the seconds of the steps, without the time to fork the workers and without a first step, in which
    the workers get memory of their own.
    """
    adam, rng = Adam(model.parameters(), 1e-4), np.random.default_rng(0)

    def gradients(*_):
        loss = model.loss(x, np.random.default_rng(0))
        return loss.item(), [g.numpy() for g in grad(loss, model.parameters())]

    def run(n, workers=None):
        options = {"rng": rng, "batch_size": len(x), "workers": workers, "validate_every": 1, "progress": False}
        record = fit(model, x, steps=n + 1, optimizer=adam, **options)
        return record[-1]["seconds"] - record[0]["seconds"]

    return run, gradients


def batch(work):
    return POINTS if work == "step/ffjord" else BATCH


def trainers(work, dtype=np.float32):
    """{contender: function that builds it}, all from the same weights."""
    constructor, losses = STEPS[work]
    model, weights = built(constructor, dtype)
    x = images(model, batch(work)).astype(dtype)
    builders = {"tinygen": functools.partial(trainer, model, x)}
    for name, layout in layouts(work, weights).items():
        builders[name] = functools.partial(pytorch_models.trainer, losses["pytorch"], weights, x, layout)
    others = {name: functools.partial(TRAINERS[name], losses[name], weights, x) for name in losses if name in TRAINERS}
    return builders | others


def training(work, dtype=np.float32):
    return {name: Contender(*build()) for name, build in trainers(work, dtype).items()}


CONVOLUTIONAL = "step/autoencoder", "step/vae", "step/pixelcnn-h16", "step/pixelcnn-h32", "step/pixelcnn-h64"


def flops(work):
    """Multiplications and additions in a step of a ``CONVOLUTIONAL`` work: 3 * 2 * unmasked taps * in * out * pixels.

    The factor 3 is for forward and the gradients of input and weights; the first layer's input has no gradient.
    """
    total, size, larger = 0, 28, []
    for i, layer in enumerate(weighted(STEPS[work][0](rng=np.random.default_rng(0)))):
        if type(layer) is Conv2d:  # halves the images
            larger.append(size)
            size = (size + 1) // 2
        kept = layer.mask.mean() if type(layer) is MaskedConv2d else 1
        pixels = 1 if type(layer) is Linear else size**2
        total += 2 * kept * layer.weight.size * pixels * (3 if i else 2)
        if type(layer) is UpConv2d:  # back to the size before
            size = larger.pop()
    return BATCH * total


def weighted(module):
    """The layers of a module that have a weight, in their order."""
    if hasattr(module, "weight"):
        yield module
    for _, child in module.children():
        if isinstance(child, Module):
            yield from weighted(child)


def peak(work, contender):
    """The most memory that three steps take beyond that of the contender as built; to be called in a new process.

    For tinygen it is that of one worker, which holds one shard at a time, times the number of workers.
    """
    run, _ = trainers(work)[contender]()
    before = memory("VmRSS")
    if contender != "tinygen":
        run(3)
        return memory("VmHWM") - before
    run(3, workers=1)
    return (memory("VmHWM") - before) * WORKERS


def growth():
    """Memory of this process after 100 and after 1,000 steps of a tiny PixelCNN."""
    model = PixelCNN((1, 8, 8), channels=4, blocks=1, rng=np.random.default_rng(0))
    adam, used = Adam(model.parameters(), 1e-4), []
    for steps in 100, 900:
        rng = np.random.default_rng(0)
        fit(model, images(model, BATCH), steps=steps, optimizer=adam, rng=rng, workers=1, progress=False)
        used.append(memory("VmRSS"))
    return used


def workers():
    """A step with one and two worker processes, and with two while another program keeps a core busy."""
    run, _ = trainers("step/pixelcnn-h32")["tinygen"]()

    def beside(n):
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
            try:
                return run(n, workers=2)
            finally:
                busy.kill()

    return {
        "1 worker": Contender(functools.partial(run, workers=1)),
        "2 workers": Contender(functools.partial(run, workers=2)),
        "2 workers, busy core": Contender(beside),
    }


# -- single operations, forward and backward with respect to all inputs


def sharded(function, x, weights, g):
    """tinygen as in training: one process per core; the processes take the shards of the batch in turn.

    Results and gradients of x stay in their shards. The time excludes adding up the processes' weight gradients.
    """
    keep_memory()
    parts = [slice(i, i + SHARD) for i in range(0, len(x), SHARD)]

    def of_shard(part):
        leaves = [Tensor(x[part], requires_grad=True), *weights]
        y = function(*leaves)
        return y.data, *(t.data for t in grad(y, leaves, Tensor(g[part])))

    def share(core, n):
        with BLAS.limit(limits=1, user_api="blas"):
            for _ in range(n):
                sums = [sum(gw) for gw in zip(*(of_shard(part)[2:] for part in parts[core::CORES]))]
        return sums

    def run(n):
        others = [multiprocessing.get_context("fork").Process(target=share, args=(core, n)) for core in range(1, CORES)]
        for process in others:
            process.start()
        share(0, n)
        for process in others:
            process.join()

    def gradients():
        ys, gxs, *gws = zip(*map(of_shard, parts))
        return float((np.concatenate(ys) * g).sum()), [np.concatenate(gxs), *map(sum, gws)]

    return Contender(run, gradients)


def image_operation(ours, theirs, x, w, y):
    """Contenders ``ours`` and ``theirs``, functions of images, filters and a bias. ``x``, ``w`` and ``y``: the shapes
    of the images, the filters and the result."""
    rng = np.random.default_rng(0)
    x, w, b, g = (rng.standard_normal(shape, np.float32) for shape in (x, w, y[1:2], y))
    contenders = {"tinygen": sharded(ours, x, [Tensor(a, requires_grad=True) for a in (w, b)], g)}
    for name, layout in ("pytorch", torch.contiguous_format), ("pytorch channels_last", torch.channels_last):
        *inputs, of_result = (pytorch_models.tensor(a, layout) for a in (x, w, b, g))
        contenders[name] = Contender(*pytorch_models.operation(theirs, inputs, of_result.detach()))
    return contenders


def convolution(channels, mask=None):
    kept = torch.tensor(1.0 if mask is None else mask, dtype=torch.float32)
    images = BATCH, channels, 28, 28
    return image_operation(
        lambda x, w, b: ops.conv2d(x, w, b, padding=1, mask=mask),
        lambda x, w, b: F.conv2d(x, w if mask is None else w * kept, b, padding=1),
        images,
        (channels, channels, 3, 3),
        images,
    )


def transposed_convolution():
    return image_operation(
        lambda x, w, b: ops.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1),
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1),
        (BATCH, 32, 14, 14),
        (32, 16, 3, 3),
        (BATCH, 16, 28, 28),
    )


def lstm():
    """28 steps, 128 features, 128 hidden units."""
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, BATCH, 28, 128), np.float32)
    ours, theirs = LSTM(128, 128, rng=rng), torch.nn.LSTM(128, 128, batch_first=True)
    for p, q in zip(theirs.parameters(), ours.parameters()):
        p.data = torch.tensor(q.numpy())
    theirs.bias_hh_l0 = torch.nn.Parameter(torch.zeros(512), requires_grad=False)  # tinygen has one bias
    inputs = [pytorch_models.tensor(x), *(p for p in theirs.parameters() if p.requires_grad)]
    run, gradients = pytorch_models.operation(lambda x, *_: theirs(x)[0], inputs, torch.tensor(g))
    return {
        "tinygen": sharded(lambda x, *_: ours(x)[0], x, ours.parameters(), g),
        "pytorch": Contender(run, gradients),
    }


# -- sampling


def sampling_width(width):
    """Sampling a pixel of 64 images of this width and height."""
    rng = np.random.default_rng(0)
    model = PixelCNN((1, width, width), channels=32, rng=rng)
    return {"tinygen": Contender(repeated(lambda: model.sample(BATCH, rng)), units=width * width)}


MASK_B = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]])
WORKS = {
    **{work: functools.partial(training, work) for work in STEPS},
    "workers/pixelcnn-h32": workers,
    **{f"op/conv3x3-{c}": functools.partial(convolution, c) for c in (16, 32, 64, 128)},
    **{f"op/masked_conv3x3-{c}": functools.partial(convolution, c, MASK_B) for c in (16, 32, 64, 128)},
    "op/conv_transpose": transposed_convolution,
    "op/lstm": lstm,
    **{
        f"sample/{name}": functools.partial(sampling, *NETWORKS[name], BATCH)
        for name in ("pixelcnn-h32", "pixelrnn-row-h16", "pixelrnn-diagonal-h16")
    },
    **{f"sample/width-{width}": functools.partial(sampling_width, width) for width in (14, 28, 56)},
}


def check(work, contenders):
    """Raise ValueError unless losses and gradients of all contenders agree, to 1e-4 of a gradient's largest entry.

    Training steps are compared in float64: in float32 a ReLU's input may round to either side of zero.
    """
    noise = []
    if work.startswith("step/"):
        contenders = training(work, np.float64)
        noise = noise_of(built(STEPS[work][0], np.float64)[0], batch(work))
    agree(contenders, noise)
