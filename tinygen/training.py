"""fit(): train a model on images, with shards, progress, validation, averaging, checkpoints and resume.

All randomness of a run follows from one seed and the number of the step (and of the shard within it), so going on from
a checkpoint needs no generator's state, and the result depends neither on interruptions nor on the number of workers.
"""

import contextlib
import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinygen.backend import split, xp
from tinygen.checkpoint import Run
from tinygen.nn import Module
from tinygen.optim import Optimizer
from tinygen.parallel import any_rank, first_rank, of_first_rank, shard_loss, start_workers
from tinygen.tensor import Tensor, grad, keep_values

SAVE_SECONDS = 60  # between checkpoints
CHECK_STEPS = 50  # steps on a device between looks at the loss, each of which waits for the device


def fit(
    model: Module,
    images: np.ndarray,
    *,
    steps: int,
    optimizer: Optimizer,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
    batch_size: int = 64,
    prepare: Callable | None = None,
    schedule: Callable[[float], float] | None = None,
    clip_norm: float | None = None,
    averaging: float | None = None,
    validation: np.ndarray | None = None,
    validation_labels: np.ndarray | None = None,
    validate_every: int = 500,
    checkpoint: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[dict]:
    """Minimize ``model.loss`` on ``images`` (N, C, H, W), a NumPy array, for ``steps`` minibatches in shuffled epochs.

    ``labels`` (N,): of the images, cut with them and handed on as ``model.loss(images, rng, labels)``.
    ``prepare(images, rng)``: applied to each part of a batch and of the validation images, e.g. ``binarize_dynamic``.
    ``schedule(done)``: factor on the optimizer's learning rate; ``done`` is the fraction of training at mid-step.
    ``clip_norm``: scale a longer gradient down to this norm. ``averaging``: decay of a running average of the weights,
    which validation uses and the model has at the end. ``validation``: images (with ``validation_labels``) whose mean
    loss is taken every ``validate_every`` steps and at the end, with the same noise each time.
    ``checkpoint``: a file, written every minute, on Ctrl-C and at the end. Where it exists, training goes on from it
    (for longer, if ``steps`` is larger now); the parameters end bit-identical to those of a run that was not
    interrupted. One of another model, optimizer, rate, batch size and so on is refused.
    ``workers``: processes (default: one for each core, on Linux). A minibatch is cut into shards of a fixed size whose
    gradients are added in their order, so that the result does not depend on it. All but the first are forked when
    training begins: what ``prepare`` or the model's ``loss`` change outside their arguments then stays in each.
    Under MPI (``mpiexec -n 2 python -m mpi4py script.py``) all ranks call ``fit`` and share the shards; the parameters
    and the checkpoint of the first one count, and it alone writes.

    Returns the record, a list of ``{"step", "seconds", "train", "validation"}``: seconds of training, mean loss since
    the row before and on the validation images, in ``model.unit``.
    On a device the loss is looked at every 50 steps only, since each look waits for it.
    Raises FloatingPointError where the loss or a gradient is not finite, naming the step and where that began;
    ValueError for an empty set of images, or for a file that is not a checkpoint of this model and optimizer.
    """
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        raise ValueError(f"images: got {getattr(images, 'shape', type(images).__name__)}, needs an array (N, C, H, W)")
    data = _set("images", images, "labels", labels)
    held_out = None if validation is None else _set("validation", validation, "validation_labels", validation_labels)
    for name, value, smallest in [
        ("batch_size", batch_size, 1),
        ("validate_every", validate_every, 1),
        ("steps", steps, 0),
    ]:
        if not isinstance(value, int | np.integer) or value < smallest:
            raise ValueError(f"{name}: got {value!r}, needs a whole number of at least {smallest}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: got {clip_norm!r}, needs to be positive")
    batch_size = min(batch_size, len(images))
    if [id(p) for p in optimizer.parameters] != [id(p) for p in model.parameters()]:
        raise ValueError("optimizer: its parameters are not those of the model, in their order")
    settings = {"images": list(images.shape), "batch_size": batch_size, "clip_norm": clip_norm}
    run = Run(model, optimizer, averaging, seed=int(rng.integers(2**63)), **settings)
    if not first_rank():
        checkpoint, progress = None, False
    elif checkpoint is not None and os.path.exists(checkpoint):
        run.load(checkpoint)
        if run.step > steps:
            raise ValueError(f"checkpoint {checkpoint}: is at step {run.step} already, steps is {steps}")
        print(f"going on from {checkpoint}, step {run.step} of {steps}; delete it to start anew", file=sys.stderr)
    elif checkpoint is not None:
        run.save(checkpoint)  # if that is not possible, better now than after an hour
    run.broadcast()
    on_cpu, full_rate, looked, stop = model.device == "cpu", optimizer.lr, True, False
    saved, held_out_images = time.monotonic(), 0 if validation is None else len(validation)

    with (
        _saved_on_error(run, checkpoint),
        _restored(optimizer),
        _interrupts() as interrupted,
        start_workers(model, prepare, workers, batch_size, held_out_images, data) as crew,
        _bar(model, steps, batch_size, run, progress) as bar,
    ):
        while True:
            if run.noted < run.step and (run.step % validate_every == 0 or run.step == steps):
                figure = None
                if held_out is not None:
                    with run.averaged():
                        figure = _evaluate(model, held_out, [run.seed, 2], crew)
                run.note(figure)
            if run.step == steps or (looked and stop):  # what is saved has been looked at
                break
            begun = time.perf_counter()
            chosen, seeds = _batch(len(images), batch_size, run.seed, run.step), [run.seed, 1, run.step]
            batch = tuple(array[chosen] for array in data)
            if schedule is not None:
                optimizer.lr = full_rate * schedule((run.step + 0.5) / steps)
            loss, gradient, stop = crew.mean(batch, seeds, stop=interrupted.is_set)
            norm = (gradient * gradient).sum() ** 0.5
            looked = on_cpu or any((run.step + 1) % every == 0 for every in (CHECK_STEPS, validate_every, steps))
            if looked:
                loss = float(loss)
                if not math.isfinite(loss + float(norm)):
                    _explain(model, crew.shards(batch, seeds), prepare, run.step)
                run.add_loss(loss)
                bar.set_postfix_str(f"{loss:.2f} {model.unit}", refresh=False)
            if clip_norm is not None:
                scale = xp(norm).minimum(clip_norm / (norm + 1e-6), 1.0)
                gradient = gradient * scale.astype(gradient.dtype)
            for p, g in zip(optimizer.parameters, split(gradient, optimizer.parameters)):
                p.grad = Tensor(g.astype(p.dtype, copy=False))
            optimizer.step()
            if run.average is not None:
                run.average.step()
            run.step += 1
            run.seconds += time.perf_counter() - begun
            bar.update(len(chosen))
            if crew.comm is None:
                stop = interrupted.is_set()
            if checkpoint is not None and looked and time.monotonic() > saved + SAVE_SECONDS:
                _check_parameters(model, run.step)
                run.save(checkpoint)
                saved = time.monotonic()
    _check_parameters(model, run.step)
    if checkpoint is not None:
        run.save(checkpoint)
    if any_rank(stop or interrupted.is_set()):  # after the first rank has saved: the end of one ends all
        kept = f"{checkpoint} is saved, and the same call goes on from it" if checkpoint else "nothing was saved"
        if first_rank():
            print(f"\ninterrupted after step {run.step} of {steps}: {kept}", file=sys.stderr)
        raise KeyboardInterrupt if hasattr(sys, "ps1") else SystemExit(130)  # a prompt stays, a script ends
    if run.average is not None:
        run.average.swap()
    return run.record


def evaluate(
    model: Module,
    images: np.ndarray,
    rng: np.random.Generator,
    prepare: Callable | None = None,
    workers: int | None = None,
    labels: np.ndarray | None = None,
) -> float:
    """Mean loss on ``images``, in ``model.unit``, with the noise that ``rng`` gives; arguments as for ``fit``.

    Under MPI all ranks call it, with the same parameters and images, and share the work.
    """
    data = _set("images", images, "labels", labels)
    with start_workers(model, prepare, workers, 0, len(images), data) as crew:
        return _evaluate(model, data, [of_first_rank(int(rng.integers(2**63)))], crew)


# -- the parts of a step


def _set(name, images, name_of_labels, labels) -> tuple:
    """(images,) or (images, labels). Raises ValueError where there are none, or not one label an image."""
    if len(images) == 0:
        raise ValueError(f"{name}: the set is empty")
    if labels is not None and np.shape(labels) != (len(images),):
        raise ValueError(f"{name_of_labels}: has shape {np.shape(labels)}, needs ({len(images)},), one an image")
    return (images,) if labels is None else (images, np.asarray(labels))


def _evaluate(model, data, seeds, crew) -> float:
    """In parts where the images have a device to fit on."""
    n = len(data[0])
    size = n if model.device == "cpu" else 256
    parts = [tuple(array[start : start + size] for array in data) for start in range(0, n, size)]
    losses = [crew.mean(part, [*seeds, i], gradients=False)[0] for i, part in enumerate(parts)]
    return sum(float(loss) * (len(part[0]) / n) for loss, part in zip(losses, parts))


@functools.lru_cache(maxsize=1)
def _shuffled(n, seed, epoch):
    return np.random.default_rng([seed, 0, epoch]).permutation(n)


def _batch(n, batch_size, seed, step):
    """The indices of a step's images. Each epoch is shuffled anew; what is left at its end is skipped."""
    epoch, i = divmod(step, n // batch_size)
    return _shuffled(n, seed, epoch)[i * batch_size : (i + 1) * batch_size]


# -- what surrounds the loop


@contextlib.contextmanager
def _saved_on_error(run, checkpoint):
    """What was reached before an exception, in a callback say, is kept; not where numbers went wrong."""
    try:
        yield
    except FloatingPointError:
        raise
    except Exception:
        if checkpoint is not None:
            run.save(checkpoint)
        raise


@contextlib.contextmanager
def _restored(optimizer):
    """However training ends, the optimizer has its full rate again and no gradients are left."""
    full_rate = optimizer.lr
    try:
        yield
    finally:
        optimizer.lr = full_rate
        optimizer.zero_grad()


@contextlib.contextmanager
def _interrupts():
    """An event that the first Ctrl-C sets, so that a step is never left half done; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may ask for signals
        return

    def handler(*_):
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _bar(model, steps, batch_size, run, progress):
    from tqdm import tqdm

    return tqdm(
        total=steps * batch_size,
        initial=run.step * batch_size,
        desc=type(model).__name__,
        unit=" img",
        unit_scale=True,
        disable=None if progress else True,  # None: shown on a terminal only
    )


def _explain(model, shards, prepare, step):
    """Raise FloatingPointError with the parameter or operation where a number first stopped being finite."""
    if model.device != "cpu":
        step = f"{max(0, step + 1 - CHECK_STEPS)} to {step}"  # nobody has looked since
    _check_parameters(model, step)
    for part, seeds in shards:
        with keep_values():
            loss = shard_loss(model, part, prepare, seeds)
            finite = _finite(loss.data)
            gradients = grad(loss, model.parameters(), create_graph=True) if finite else ()
        results = {"the loss": loss}
        if finite:
            names = [f"the gradient of {name}" for name, _ in model.named_parameters()]
            results = dict(zip(names, gradients))
        for what, tensor in results.items():
            if not _finite(tensor.data):
                raise FloatingPointError(
                    f"step {step}: {what} is not finite, first in {_origin(tensor, model)}; "
                    "a smaller learning rate or clip_norm may help"
                )
    raise FloatingPointError(f"step {step}: the norm of the gradient is not finite")


def _origin(tensor, model) -> str:
    """Follow what is not finite back to the operation that made it of finite numbers."""
    while tensor._op is not None:
        bad = next((x for x in tensor._op.inputs if not _finite(x.data)), None)
        if bad is None:
            names = {id(p): name for name, p in model.named_parameters()}
            used = [names[id(x)] for x in tensor._op.inputs if id(x) in names]
            of = f" with parameter {', '.join(used)}" if used else ""
            shapes = ", ".join(str(x.shape) for x in tensor._op.inputs)
            return f"{type(tensor._op).__name__}{of} (inputs {shapes})"
        tensor = bad
    return f"an input of shape {tensor.shape}"


def _check_parameters(model, step):
    for name, p in model.named_parameters():
        if not _finite(p.data):
            raise FloatingPointError(f"step {step}: parameter {name} is not finite")


def _finite(array) -> bool:
    return bool(xp(array).isfinite(array).all())
