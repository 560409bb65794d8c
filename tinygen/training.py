"""fit(): train a model on images, with shards, progress, validation, averaging, checkpoints and resume.

All randomness of a run follows from one seed and the number of the step (and of the shard within it). So a checkpoint
needs no generator's state, and the result depends neither on interruptions nor on the number of workers.
"""

import contextlib
import functools
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tinygen import check
from tinygen.backend import split, xp
from tinygen.checkpoint import TrainingState, digest
from tinygen.nn import Module
from tinygen.optim import Optimizer
from tinygen.parallel import (
    SHARD,
    any_rank,
    first_rank,
    of_first_rank,
    one_blas_thread,
    prepared,
    shard_loss,
    start_workers,
)
from tinygen.tensor import Tensor, grad, keep_values, no_grad

SAVE_SECONDS = 60  # between checkpoints
LOG_SECONDS = 30  # between lines of progress in a file
PROBES = 257  # values of a schedule that identify it in a checkpoint
CHECK_STEPS = 50  # steps between readings of the loss on a device, each of which waits for the device


def fit(
    model: Module,
    images: np.ndarray,
    *,
    steps: int | None = None,
    seconds: float | None = None,
    optimizer: Optimizer,
    rng: np.random.Generator,
    labels: np.ndarray | None = None,
    batch_size: int = 64,
    prepare: Callable | None = None,
    schedule: Callable[[float], float] | None = None,
    anneal: dict[str, Callable[[float], float]] | None = None,
    clip_norm: float | None = None,
    averaging: float | None = None,
    validation: np.ndarray | None = None,
    validation_labels: np.ndarray | None = None,
    validate_every: int = 500,
    patience: int | None = None,
    callback: Callable[[dict], bool | None] | None = None,
    checkpoint: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> list[dict]:
    """Minimize ``model.loss`` on ``images``, a NumPy array (N, ...), in minibatches of shuffled epochs.

    ``model``: any Module with ``loss(x, rng)``, which returns the mean over x as a Tensor. x is a Tensor of some of the
    images, converted to the model's dtype if they are floating-point. ``labels`` (N, ...) are cut like the images and
    passed on as an array: ``model.loss(x, rng, labels)``. If the model has ``initialize``, which takes the same
    arguments, it is called with the first minibatch before training begins. Training then updates every parameter that
    the optimizer holds and that requires grad.
    ``steps``, ``seconds``: the length of training; with both, the first limit reached ends it. A run that ``seconds``
    ends is not reproducible to the last bit.
    ``prepare(images, rng)``: applied to each part of a batch and of the validation images, e.g. ``binarize_dynamic``.
    ``schedule(done)``: factor on the optimizer's learning rate; ``done`` is the fraction of training at mid-step.
    ``anneal``: functions of ``done`` that set attributes of the model, {"beta": lambda done: min(1, 4 * done)}.
    Validation uses the attributes' original values, which are restored at the end.
    ``clip_norm``: a gradient with a larger norm is scaled down to it. ``averaging``: decay of a moving average of the
    parameters; validation uses the average, and the model has it at the end. ``validation``: images (with
    ``validation_labels``) on which the mean ``score``, or ``loss`` if the model has no score, is computed every
    ``validate_every`` steps and at the end, with the same noise each time.
    ``patience``: training ends after this many validations without a new best one; the model then has the best weights.
    ``callback(row)``: called after each row of the record, with the averaged weights in the model; True ends training.
    ``checkpoint``: a file, written every minute, on Ctrl-C and at the end. If it exists, training goes on from it, and
    the parameters end bit-identical to those of a run without interruption. ``steps`` may be larger than before; a
    schedule then goes on from a smaller fraction. A checkpoint with other settings, images, modules or plain attributes
    of modules (so ``loss`` must not count in them) is refused. What functions compute is not compared: the model's
    methods, ``prepare`` (only its name is) and ``callback``.
    ``workers``: number of processes (by default one per core on Linux, else 1). A minibatch is cut into shards of a
    fixed size, whose gradients are added in a fixed order, so the result does not depend on ``workers``. Processes are
    forked when training begins. Whatever ``prepare`` or ``loss`` changes outside its arguments stays in its process.
    Under MPI (``mpiexec -n 2 python -m mpi4py script.py``) all ranks call ``fit`` and share the shards. They start from
    the first rank's parameters and checkpoint, and only the first rank writes.

    Returns the record, a list of ``{"step", "seconds", "train", "validation"}``: seconds of training, mean loss since
    the row before, and mean score on the validation images, in ``model.unit`` if it has one.
    On a device the loss is read every 50 steps only, since reading it waits for the device.
    Raises FloatingPointError if the loss or a gradient is not finite, naming the step and the operation where that
    began; ValueError for arguments that do not fit, or a file that is not a checkpoint of this run; KeyboardInterrupt
    after Ctrl-C, once the checkpoint is saved. If a save other than the first fails, it only warns.
    """
    data, held_out = _images_and_labels("images", images, "labels", labels), None
    if validation is not None or validation_labels is not None:
        held_out = _images_and_labels("validation", validation, "validation_labels", validation_labels)
    if steps is None and seconds is None:
        raise ValueError("steps: got None, needs a number of steps, or seconds")
    if patience is not None and held_out is None:
        raise ValueError("patience: needs validation images")
    if held_out is not None and len(held_out) != len(data):
        raise ValueError("validation_labels: needs labels where the images have some, and none where they have none")
    if checkpoint is not None and not isinstance(checkpoint, str | os.PathLike):
        raise ValueError(f"checkpoint: got {checkpoint!r}, needs a path")
    steps = math.inf if steps is None else check.count("steps", steps, 0)
    seconds = math.inf if seconds is None else check.number("seconds", seconds, "(0, inf)")
    patience = math.inf if patience is None else check.count("patience", patience)
    clip_norm = math.inf if clip_norm is None else check.number("clip_norm", clip_norm, "(0, inf]")
    batch_size = min(check.count("batch_size", batch_size), len(images))
    validate_every = check.count("validate_every", validate_every)
    if not isinstance(anneal or {}, dict):
        raise ValueError(f"anneal: got {anneal!r}, needs a dict of functions by the names of the model's attributes")
    learned, anneal = _learned(model, optimizer), anneal or {}
    functions = {"prepare": prepare, "schedule": schedule, "callback": callback}
    for name, f in {**functions, **{f"anneal {name}": f for name, f in anneal.items()}}.items():
        if f is not None and not callable(f):
            raise ValueError(f"{name}: got {f!r}, needs a function")
    if missing := [name for name in anneal if not hasattr(model, name)]:
        raise ValueError(f"anneal: {type(model).__name__} has no attribute {', '.join(missing)}")
    own = {name: getattr(model, name) for name in anneal}
    settings = {
        "batch_size": batch_size,
        "clip_norm": clip_norm,
        "validate_every": validate_every,
        "patience": patience,
    }
    settings["frozen"] = [name for name, p in model.named_parameters() if all(p is not q for q in learned)]
    settings |= _digests(data, held_out, prepare, schedule, anneal)
    seed = int(check.generator(rng).integers(2**63))
    if hasattr(model, "initialize"):
        _initialize(model, _batch(data, batch_size, seed, 0), held_out, prepare, seed)
    state = TrainingState(model, optimizer, learned, averaging, seed, settings)
    if not first_rank():
        checkpoint, progress = None, False
    _resume(state, checkpoint, steps)
    look_every = 1 if model.device == "cpu" or seconds < math.inf else CHECK_STEPS
    looked, stop, saved = True, False, time.monotonic()

    with (
        _restored(optimizer, model, own) as full_rate,
        _interrupts() as interrupted,
        start_workers(
            model, learned, prepare, workers, data, batch_size, len(held_out[0]) if held_out else 0
        ) as workers,
        _bar(model, steps * batch_size, state.step * batch_size, progress) as bar,
    ):
        if held_out is not None:  # finds errors in the validation data before anything is written
            workers.mean(tuple(array[:SHARD] for array in held_out), [0], own, gradients=False)
        if checkpoint is not None and not state.step:
            state.save(checkpoint)  # if the file cannot be written, this raises now rather than after an hour
        with _saved_on_error(state, checkpoint):
            while True:
                over = state.step == steps or state.seconds >= seconds
                if state.noted < state.step and (state.step % validate_every == 0 or over):
                    with state.averaged():
                        state.note(
                            None if held_out is None else _evaluate(model, held_out, [state.seed, 2], own, workers)
                        )
                        if patience < math.inf and state.since_best == 0:
                            state.best = model.state_dict()
                        state.ended = of_first_rank(bool(callback and first_rank() and callback(state.record[-1])))
                # After Ctrl-C, stop only when the loss has been read, so that no nan is saved
                if over or state.ended or state.since_best >= patience or (looked and stop):
                    break
                begun = time.perf_counter()
                done = max((state.step + 0.5) / steps, state.seconds / seconds)
                optimizer.lr = full_rate * (1.0 if schedule is None else schedule(done))
                now = {name: f(done) for name, f in anneal.items()}
                batch, seeds = _batch(data, batch_size, state.seed, state.step), [state.seed, 1, state.step]
                loss, gradient, changes, stop = workers.mean(batch, seeds, now, stop=interrupted.is_set)
                norm = (gradient * gradient).sum() ** 0.5
                looked = any((state.step + 1) % every == 0 for every in (look_every, validate_every, steps))
                if looked and not math.isfinite(float(loss) + float(norm)):
                    _explain(model, learned, workers.shards(batch, seeds), prepare, state.step)
                if clip_norm < math.inf:
                    scale = xp(norm).minimum(clip_norm / (norm + 1e-6), 1.0)
                    gradient = gradient * scale.astype(gradient.dtype)
                _update(state, workers, gradient, changes, float(loss) if looked else None)
                state.seconds += time.perf_counter() - begun
                if seconds < math.inf:
                    state.seconds = of_first_rank(state.seconds)
                if looked:
                    bar.set_postfix_str(f"{float(loss):.2f} {getattr(model, 'unit', '')}".rstrip(), refresh=False)
                bar.update(batch_size)
                if checkpoint is not None and looked and time.monotonic() > saved + SAVE_SECONDS:
                    _check_parameters(model, state.step)
                    _save(state, checkpoint)
                    saved = time.monotonic()
    _check_parameters(model, state.step)
    kept = checkpoint is not None and _save(state, checkpoint)
    if any_rank(stop or interrupted.is_set()):  # after the first rank has saved: an exception on one rank ends all
        kept = f"{checkpoint} is saved, and the same call goes on from it" if kept else "nothing was saved"
        raise KeyboardInterrupt(f"interrupted after step {state.step}{_of(steps)}: {kept}")
    if state.best is not None:
        model.load_state_dict(state.best)
    elif state.average is not None:
        state.average.swap()
    return state.record


def evaluate(
    model: Module,
    images: np.ndarray,
    rng: np.random.Generator,
    prepare: Callable | None = None,
    workers: int | None = None,
    labels: np.ndarray | None = None,
) -> float:
    """Mean of ``model.score`` on ``images``, or of ``model.loss`` if it has no score, with noise from ``rng``.

    Arguments are as for ``fit``. Under MPI all ranks call it, with the same parameters and images, and share the work.
    """
    data = _images_and_labels("images", images, "labels", labels)
    seed = of_first_rank(int(check.generator(rng).integers(2**63)))
    with start_workers(model, _parameters(model), prepare, workers, data, 0, len(images)) as workers:
        return _evaluate(model, data, [seed], {}, workers)


# -- the parts of a step


def _initialize(model, batch, held_out, prepare, seed):
    """Call the model's ``initialize`` with the first minibatch and a generator that nothing else uses."""
    rng = np.random.default_rng([seed, 3])
    with one_blas_thread, no_grad():
        if held_out is not None:  # finds errors in the validation data before the model changes
            shard_loss(model, tuple(array[:SHARD] for array in held_out), prepare, [0], learning=False)
        x, *labels = prepared(model, batch, prepare, rng)
        model.initialize(x, rng, *labels)


def _images_and_labels(name, images, name_of_labels, labels) -> tuple:
    """(images,) or (images, labels). Raises ValueError if there are no images, or not one label per image."""
    if not isinstance(images, np.ndarray) or not np.shape(images)[:1] > (0,) or images.dtype.kind not in "fiub":
        got = f"{images.shape} {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ValueError(f"{name}: got {got}, needs a NumPy array (N, ...) of numbers, N at least 1")
    if labels is None:
        return (images,)
    labels = np.asarray(labels)
    if labels.shape[:1] != (len(images),) or labels.dtype.kind not in "fiub":
        got = f"{labels.shape} {labels.dtype}"
        raise ValueError(f"{name_of_labels}: got {got}, needs ({len(images)}, ...) numbers, a label for each image")
    return images, labels


def _parameters(model) -> list:
    """All of the model's parameters."""
    if not isinstance(model, Module) or not hasattr(model, "loss"):
        raise ValueError(f"model: got {type(model).__name__}, needs a Module with loss(x, rng)")
    return model.parameters()


def _learned(model, optimizer) -> list:
    """The model's parameters that the optimizer holds and that require grad."""
    own = _parameters(model)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer: got {type(optimizer).__name__}, needs one of tinygen.optim")
    held = {id(p) for p in optimizer.parameters}
    learned = [p for p in own if id(p) in held and p.requires_grad]
    if not learned or not held <= {id(p) for p in own}:
        raise ValueError("optimizer: needs parameters of this model only, at least one of which requires grad")
    return learned


def _digests(data, held_out, prepare, schedule, anneal) -> dict:
    """Texts that identify the data and the functions of a run."""
    return {
        **{f"images[{i}]": digest(array) for i, array in enumerate(data)},
        **{f"validation[{i}]": digest(array) for i, array in enumerate(held_out or ())},
        **{f"anneal {name}": _probed(f"anneal {name}", f) for name, f in anneal.items()},
        "schedule": None if schedule is None else _probed("schedule", schedule),
        "prepare": getattr(prepare, "__qualname__", type(prepare).__name__),
    }


def _probed(name, function) -> str:
    """A digest of the values of a function of ``done``. Raises ValueError if one is not a finite number."""
    fractions = np.linspace(0, 1, PROBES)
    return digest(np.array([check.number(name, function(float(done)), "(-inf, inf)") for done in fractions]))


def _evaluate(model, data, seeds, settings, workers) -> float:
    """Mean loss over ``data``; on a device 256 images at a time, so that they fit."""
    n = len(data[0])
    size = n if model.device == "cpu" else 256
    parts = [tuple(array[start : start + size] for array in data) for start in range(0, n, size)]
    losses = [workers.mean(part, [*seeds, i], settings, gradients=False)[0] for i, part in enumerate(parts)]
    return sum(float(loss) * (len(part[0]) / n) for loss, part in zip(losses, parts))


@functools.lru_cache(maxsize=1)
def _shuffled(n, seed, epoch):
    return np.random.default_rng([seed, 0, epoch]).permutation(n)


def _batch(data, batch_size, seed, step) -> tuple:
    """A step's images, and labels. Each epoch is shuffled anew; an incomplete batch at its end is skipped."""
    n = len(data[0])
    epoch, i = divmod(step, n // batch_size)
    chosen = _shuffled(n, seed, epoch)[i * batch_size : (i + 1) * batch_size]
    return tuple(array[chosen] for array in data)


def _update(state, workers, gradient, changes, loss):
    """Update parameters and buffers. If something fails in here, no checkpoint of the partial step is saved."""
    state.whole = False
    if loss is not None:
        state.add_loss(loss)
    workers.change_buffers(changes)
    for p, g in zip(workers.parameters, split(gradient, workers.parameters)):
        p.grad = Tensor(g.astype(p.dtype, copy=False))
    state.optimizer.step()
    if state.average is not None:
        state.average.step()
    state.step += 1
    state.whole = True


# -- what surrounds the loop


def _resume(state, checkpoint, steps):
    """Go on from the checkpoint if there is one, on all ranks."""
    if checkpoint is not None and os.path.exists(checkpoint):
        state.load(checkpoint)
        if state.step > steps:
            raise ValueError(f"checkpoint {checkpoint}: is at step {state.step} already, steps is {steps}")
        print(f"going on from {checkpoint}, step {state.step}{_of(steps)}; delete it to start anew", file=sys.stderr)
    state.broadcast()


def _of(steps) -> str:
    return f" of {steps}" if steps < math.inf else ""


@contextlib.contextmanager
def _saved_on_error(state, checkpoint):
    """Save a checkpoint if something raises, such as a callback, but not within a step nor after FloatingPointError."""
    try:
        yield
    except FloatingPointError:
        raise
    except Exception:
        if checkpoint is not None and state.whole:
            _save(state, checkpoint)
        raise


def _save(state, checkpoint) -> bool:
    """Save, and return whether it worked. A failure only warns: training is worth more than its checkpoint."""
    try:
        state.save(checkpoint)
    except OSError as error:
        warnings.warn(f"{error}; training goes on, and the file is as it was at the last save", stacklevel=3)
        return False
    return True


@contextlib.contextmanager
def _restored(optimizer, model, own):
    """However the block ends, restore the learning rate and the model's attributes, and drop the gradients."""
    full_rate = optimizer.lr
    try:
        yield full_rate
    finally:
        optimizer.lr = full_rate
        optimizer.zero_grad()
        for name, value in own.items():
            setattr(model, name, value)


@contextlib.contextmanager
def _interrupts():
    """An event that the first Ctrl-C sets, so that no step is left half done; a second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
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


class _Log:
    """A file in which each update of a progress bar is a new line, instead of overwriting the last one."""

    def write(self, text):
        if text := text.strip("\r\n "):
            print(text, file=sys.stderr, flush=True)

    def flush(self):
        pass


def _bar(model, total, initial, progress):
    from tqdm import tqdm

    ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    drawn = sys.stderr.isatty() or hasattr(ipython, "kernel")  # on a terminal, or in a notebook
    return tqdm(
        total=total if total < math.inf else None,
        initial=initial,
        desc=type(model).__name__,
        unit=" img",
        unit_scale=True,
        disable=not progress,
        **{} if drawn else {"file": _Log(), "mininterval": LOG_SECONDS},
    )


def _explain(model, learned, shards, prepare, step):
    """Raise FloatingPointError with the parameter or operation where a number first stopped being finite."""
    if model.device != "cpu":
        step = f"{max(0, step + 1 - CHECK_STEPS)} to {step}"  # the steps since the loss was last read
    _check_parameters(model, step)
    largest = max(abs(part[0]).max() for part, _ in shards)
    hint = f", or smaller numbers in the images: some are {largest:g}" if largest > 50 and prepare is None else ""
    for part, seeds in shards:
        with keep_values():
            loss = shard_loss(model, part, prepare, seeds)
            finite = _finite(loss.data)
            gradients = grad(loss, learned, create_graph=True) if finite else ()
        results = {"the loss": loss}
        if finite:
            names = {id(p): name for name, p in model.named_parameters()}
            results = {f"the gradient of {names[id(p)]}": g for p, g in zip(learned, gradients)}
        for what, tensor in results.items():
            if not _finite(tensor.data):
                raise FloatingPointError(
                    f"step {step}: {what} is not finite, first in {_origin(tensor, model)}; "
                    f"a smaller learning rate or clip_norm may help{hint}"
                )
    raise FloatingPointError(f"step {step}: the norm of the gradient is not finite{hint}")


def _origin(tensor, model) -> str:
    """Follow values that are not finite back to the operation that computed them from finite ones."""
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
