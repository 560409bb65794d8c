"""Losses and gradients of a minibatch from several processes: forked workers, and MPI's ranks on one or more machines.

The images are cut into shards, whose size depends on the network. The ranks take shards in turn, and so do the workers
of each rank. Whichever process computes a shard, the shard has its own noise and its own place in the sum, so the
result is the same to the last bit for any number of workers.

Workers are processes, not threads: a step is made of many small NumPy calls, between which threads wait for the
interpreter's lock. Measured on two cores, 64 images: two threads are 0.8 to 1.5 times as fast as one (autoencoder to
PixelCNN), two processes 1.8 to 2.

The same script trains on several machines, or on one with several GPUs, under MPI (extra ``mpi``):

    mpiexec -n 2 python -m mpi4py demos/quickstart.py

All ranks call ``fit`` and ``evaluate``, and one prints: ``if first_rank(): print(...)``. One Allreduce adds the
gradients, so all ranks have the same parameters, which differ from those of a single process by rounding only. Only the
first rank writes checkpoints and shows progress. An error or Ctrl-C on any rank ends them all. On GPUs each rank takes
the next device of its machine, and NCCL adds the gradients. Without ``-m mpi4py`` each process would train alone, and
overwrite the files of the others. On one machine without GPUs ranks gain nothing over workers, since they share the
cores.
"""

import contextlib
import ctypes
import functools
import gc
import inspect
import math
import mmap
import multiprocessing
import operator
import os
import pickle
import select
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from tinygen import check
from tinygen.backend import communicator, flatten, ranks_on_this_machine, split, sum_over_ranks, to_device, xp
from tinygen.nn import RowBuffer
from tinygen.tensor import Tensor, as_array, grad, history, no_grad

SHARD, LARGEST = 16, 128  # images in a shard: few enough for the cache, enough to amortize NumPy's calls
PIECE = 1 << 15  # bytes written to a pipe at once; a pipe has room for several such pieces
IDLE_SECONDS = 60  # a worker that computes nothing for this long counts as stopped
ACTIVATIONS = 1 << 20  # the size of a shard is doubled as long as its activations have at most this many numbers,
ARRAY = 1 << 14  # or at most this many on average: a long graph of small arrays is bound by the overhead of calls


def first_rank() -> bool:
    """Whether this process should print and write files: False on all of MPI's ranks but the first."""
    comm = communicator()
    return comm is None or comm.rank == 0


def of_first_rank(value):
    """The first rank's ``value``, on all ranks. All ranks must call it."""
    comm = communicator()
    return value if comm is None else comm.bcast(value)


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` holds on any rank. All ranks must call it, and each waits for the others."""
    comm = communicator()
    return bool(flag if comm is None else comm.allreduce(int(flag)))


@contextlib.contextmanager
def start_workers(model, learned, prepare, workers: int | None, data, largest_batch: int, most_images: int):
    """Yield ``Workers`` for gradients of ``largest_batch`` images and losses of ``most_images``; end them afterwards.

    ``learned``: the parameters to differentiate with respect to. ``data``: (images,) or (images, labels); the network
    is run on a few of them to find the size of a shard.
    """
    # Systems other than Linux cannot fork, or not safely with their BLAS; and a daemon may not have child processes.
    forks = sys.platform.startswith("linux") and not multiprocessing.current_process().daemon
    if workers is None:
        workers = max(1, len(os.sched_getaffinity(0)) // ranks_on_this_machine()[1]) if forks else 1
    if prepare is not None and not callable(prepare):
        raise ValueError(f"prepare: got {prepare!r}, needs a function of images and rng")
    if check.count("workers", workers) > 1 and not forks:
        raise ValueError(f"workers: got {workers}, but this process cannot fork any: needs 1")
    differentiated = learned if largest_batch else []
    if model.device != "cpu":
        shard_size(model, differentiated, data, prepare)  # only to find errors before training begins
        yield Workers(model, learned, prepare, 1, None)
        return
    keep_memory()
    with one_blas_thread:
        shard = shard_size(model, differentiated, data, prepare)
        processes = Workers(model, learned, prepare, max(1, -(-largest_batch // shard)), shard)
        try:
            processes.fork(min(workers, -(-max(largest_batch, most_images) // shard)) - 1)
            yield processes
        finally:
            processes.close()


class _OneBlasThread:
    """Limit BLAS to one thread while any thread of this process is inside the block.

    BLAS's threads become very slow when another program uses a core, and workers keep all cores busy. A single worker
    is limited too: with more threads BLAS adds in another order and rounds differently.
    """

    def __init__(self):
        self.lock, self.inside = threading.Lock(), 0

    def __enter__(self):
        from threadpoolctl import ThreadpoolController

        with self.lock:
            if self.inside == 0:
                self.controller = ThreadpoolController()
                self.limits = self.controller.limit(limits=1, user_api="blas")
            self.inside += 1

    def __exit__(self, *exception):
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.limits.restore_original_limits()
            for library in self.controller.lib_controllers:
                if hasattr(library, "clear_controlling_thread"):  # threadpoolctl 3.8 obeys one thread until this
                    library.clear_controlling_thread()


one_blas_thread = _OneBlasThread()


@functools.cache
def keep_memory():
    """Make glibc keep freed memory for the next step instead of returning it to the system, in the whole process.

    Measured: otherwise half of a PixelCNN's step is spent in page faults on the same few arrays. Python's garbage
    collector also runs less often: it would look through the thousands of Ops of a step again and again, though they
    are freed without it. Without this, FFJORD's step takes 1.4 times as long.
    """
    gc.set_threshold(50_000)
    with contextlib.suppress(OSError, AttributeError):  # with another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # from malloc.h
        mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25)  # older versions allow no more
        mallopt(m_trim_threshold, (1 << 31) - 1)
        mallopt(m_top_pad, 1 << 26)


class Workers:
    """This process and the workers forked from it, which have copies of the model, ``prepare`` and everything else.

    Weights and gradients are exchanged through shared memory, everything else through pipes.
    """

    def __init__(self, model, learned, prepare, slots, shard):
        self.model, self.prepare, self.shard, self.comm = model, prepare, shard, communicator()
        self.parameters, self.pipes, self.processes = learned, [], []
        buffers = [b for _, b in model.named_buffers() if b.dtype.kind == "f"]  # integers are not averaged
        self.buffers = sorted(buffers, key=lambda b: isinstance(b, RowBuffer))  # those that are cut into rows come last
        self.values = self.parameters + self.buffers  # exchanged with the workers
        self.averaged = sum(p.size for p in self.values if not isinstance(p, RowBuffer))
        self.size, dtypes = sum(p.size for p in self.values), {p.dtype for p in self.values}
        self.dtype, self.one_dtype = np.result_type(*dtypes), len(dtypes) == 1
        self.modules = list(model.named_modules("model"))
        self.tensors = [*model.named_parameters(), *model.named_buffers()]
        self.slots = [None] * slots  # one per shard: its gradient and its changes of the buffers
        for p in self.values:  # workers have C order, and BLAS rounds differently in another memory order
            p.data = xp(p.data).ascontiguousarray(p.data).reshape(p.shape)

    def fork(self, count):
        if count < 1 or not self.one_dtype:  # one array of weights cannot hold several dtypes
            return
        self.weights = _shared((self.size,), self.dtype)
        self.slots = _shared((len(self.slots), self.size), self.dtype)
        context = multiprocessing.get_context("fork")
        for _ in range(count):
            ours, theirs = context.Pipe()
            self.pipes.append(ours)  # before the fork: a worker closes its copies of our ends
            process = context.Process(target=self._serve, args=(theirs,), daemon=True)
            process.start()
            self.processes.append(process)
            theirs.close()
        self._remember()

    def _remember(self):
        """Note what the workers have copies of: the modules' attributes, and the tensors that are not exchanged."""
        exchanged = {id(tensor) for tensor in self.values}
        self.attributes = [(name, module, dict(vars(module))) for name, module in self.modules]
        others = [(name, tensor) for name, tensor in self.tensors if id(tensor) not in exchanged]
        self.others = [(name, tensor, tensor._version[0]) for name, tensor in others]

    def _check_unchanged(self):
        """Raise RuntimeError if anything noted has changed since: the workers' copies would have the old value."""
        changed = [name for name, tensor, version in self.others if tensor._version[0] != version]
        for name, module, before in self.attributes:
            now = vars(module)
            if len(now) != len(before) or not all(map(operator.is_, now.values(), before.values())):  # usually equal
                changed += [f"{name}.{key}" for key in {**before, **now} if not _same(before.get(key), now.get(key))]
        if changed:
            raise RuntimeError(
                f"{', '.join(changed)} was changed during training, in one of {len(self.pipes) + 1} processes: use "
                "anneal={name: function} for what follows the training, or workers=1"
            )

    def close(self):
        """Kill the workers, whatever they are doing."""
        for process in self.processes:
            process.kill()
            process.join()
        for pipe in self.pipes:
            pipe.close()

    def shards(self, batch, seeds):
        """The shards of a minibatch, each with its seeds. On a device there is one shard for each rank."""
        n = len(batch[0])
        size = self.shard or -(-n // (self.comm.size if self.comm else 1))
        parts = [tuple(array[start : start + size] for array in batch) for start in range(0, n, size)]
        return [(part, [*seeds, i]) for i, part in enumerate(parts)]

    def mean(self, batch, seeds, settings, gradients: bool = True, stop=lambda: False):
        """The mean loss over ``batch``, (images,) or (images, labels), its gradient and the buffers' changes as flat
        arrays, and whether ``stop()`` is True on any rank. On a device it returns before they are computed.

        ``settings``: attributes that are set on the model first, in all processes. The model is not changed otherwise.
        """
        rank, ranks = (self.comm.rank, self.comm.size) if self.comm else (0, 1)
        shards = self.shards(batch, seeds)
        n, size = len(batch[0]), len(shards[0][0][0])  # all shards have this size but the last
        tasks = [
            (slot, len(part[0]) / n, (rank + slot * ranks) * size, part, seed)
            for slot, (part, seed) in enumerate(shards[rank::ranks])
        ]
        shares = [tasks[i :: len(self.pipes) + 1] for i in range(len(self.pipes) + 1)]
        if self.pipes:
            self._check_unchanged()
            self.weights[...] = flatten([p.data for p in self.values])
        with _workers_alive():
            for pipe, process, share in zip(self.pipes, self.processes, shares[1:]):
                _send(pipe, process, (share, settings, gradients))
        losses = self._run(shares[0], settings, gradients)
        for pipe, process, share in zip(self.pipes, self.processes, shares[1:]):
            with _workers_alive():
                _wait(pipe, process, select.POLLIN)
                theirs = pipe.recv()
            if theirs is None:  # the worker failed: repeat its work here, to raise the full exception
                theirs = self._run(share, settings, gradients)
            losses |= theirs
        if self.pipes:
            self._remember()
        loss, stopping, m = sum(losses[k] for k in sorted(losses)), stop(), xp(self.parameters[0].data)
        flat = m.zeros(self.size if gradients else 0, self.dtype)
        if gradients and tasks:
            flat = sum(self.slots[: len(tasks)])
        if self.comm is not None:
            ends = m.zeros(2, self.dtype if gradients else np.float64)
            ends[0], ends[1] = loss, stopping
            total = sum_over_ranks(m.concatenate([ends, flat]), self.comm)
            loss, stopping, flat = total[0], total[1], total[2:]
        learned = sum(p.size for p in self.parameters)
        return loss, flat[:learned], flat[learned:], stopping

    def change_buffers(self, changes):
        for b, change in zip(self.buffers, split(changes, self.buffers)):
            b.data = b.data + change.astype(b.dtype)

    def _run(self, share, settings, gradients):
        """Compute some shards: return {slot: weighted loss}, and store weighted gradients and changes in ``slots``."""
        losses = {}
        for name, value in settings.items():
            setattr(self.model, name, value)
        for slot, weight, start, part, seeds in share:
            rows = slice(start, start + len(part[0]))
            with contextlib.nullcontext() if gradients else no_grad(), _changes_of(self.buffers, rows) as changes:
                loss = shard_loss(self.model, part, self.prepare, seeds, gradients)
                found = [g.data for g in gradients_of(loss, self.model, self.parameters)] if gradients else []
            if gradients:
                flat = flatten(found + changes)
                flat[: self.averaged] *= weight
                self.slots[slot] = flat
            losses[slot] = (loss.item() if self.model.device == "cpu" else loss.data) * weight
        return losses

    def _serve(self, pipe):
        """The worker loop."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one handles it
        for other in self.pipes:
            other.close()
        self.pipes = []
        for p, values in zip(self.values, split(self.weights, self.values)):
            p.data = values
        with contextlib.suppress(EOFError, OSError):  # the first process has ended
            while True:
                task = pickle.loads(b"".join([pipe.recv_bytes() for _ in range(pipe.recv())]))
                try:
                    losses = self._run(*task)
                except BaseException:  # the first process repeats the work and raises
                    losses = None
                pipe.send(losses)


@contextlib.contextmanager
def _changes_of(buffers, rows=slice(None)):
    """Yield a list. When the block ends, the changes of the buffers are added to it, and the buffers are restored.

    In the block each RowBuffer has only these rows. The change of the others is zero.
    """
    before, changes = [b.data for b in buffers], []
    cut = [v[rows] if isinstance(b, RowBuffer) else v for b, v in zip(buffers, before)]
    try:
        for b, v in zip(buffers, cut):
            b.data = v
        yield changes
        for b, v, part in zip(buffers, before, cut):
            change = xp(v).zeros_like(v)
            if b.data is not part:
                change[rows if isinstance(b, RowBuffer) else ...] = b.data - part
            changes.append(change)
    finally:
        for b, v in zip(buffers, before):
            b.data = v


def gradients_of(loss, model, learned) -> tuple[Tensor, ...]:
    """Gradients of the loss with respect to the parameters ``learned``. Raises ValueError naming unused parameters."""
    try:
        return grad(loss, learned)
    except ValueError as error:
        used, wanted = {id(x) for op in history([loss]) for x in op.inputs}, {id(p) for p in learned}
        unused = [name for name, p in model.named_parameters() if id(p) in wanted - used]
        if not unused:
            raise
        raise ValueError(
            f"the loss does not depend on parameter {', '.join(unused)}: use it, or give the optimizer the others"
        ) from error


def shard_size(model, learned, data, prepare) -> int:
    """The number of images in a shard: more for a small network, in which the overhead of NumPy's calls dominates, and
    at least as many as the model needs ``together``.

    It depends on the network and the images, not on the number of workers. The loss and its gradient are computed
    once, so that their errors are found before training begins.
    """
    part = tuple(array[:SHARD] for array in data)
    try:
        for function in model.loss, getattr(model, "score", model.loss):
            inspect.signature(function).bind(*part, None)  # checks only their number; None stands for rng
    except TypeError as error:
        called = "(x, rng), without labels" if len(part) == 1 else "(x, rng, labels)"
        raise ValueError(f"{type(model).__name__}.loss: is called with {called} ({error})") from error
    with _changes_of([b for _, b in model.named_buffers()]):
        loss = shard_loss(model, part, prepare, [0])
        if learned:
            gradients_of(loss, model, learned)
    computed = {(x._op._order, x._index): x.shape for op in history([loss]) for x in op.inputs if x._op}
    sizes = {key: math.prod(s) for key, s in computed.items() if len(part[0]) in s}  # others are made of weights alone
    size, numbers = SHARD, sum(sizes.values()) / len(part[0])
    while size < LARGEST and 2 * size * numbers <= max(ACTIVATIONS, ARRAY * len(sizes)):
        size *= 2
    return max(size, getattr(model, "together", 1))


@contextlib.contextmanager
def _workers_alive():
    """Raise RuntimeError if a pipe breaks inside the block, which means that a worker was killed."""
    try:
        yield
    except (EOFError, OSError) as error:
        raise RuntimeError("a worker process was ended from outside, perhaps for want of memory") from error


def _send(pipe, process, task):
    """Send a task in pieces, each once the pipe has room for it, since a write to a full pipe would block."""
    content = pickle.dumps(task)  # as pipe.send does; only a process forked from this one reads it
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    pipe.send(len(pieces))
    for piece in pieces:
        _wait(pipe, process, select.POLLOUT)
        pipe.send_bytes(piece)


def _wait(pipe, process, event):
    """Wait until the pipe can be read from or written to.

    Raises RuntimeError if the worker at its other end has not computed for ``IDLE_SECONDS``.
    """
    ready = select.poll()  # pipe.poll() would create a new one in each call
    ready.register(pipe.fileno(), event)
    used, since = None, time.monotonic()
    while not ready.poll(1000):
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        if used != (used := fields[11:13]):  # its processor time
            since = time.monotonic()
        elif time.monotonic() > since + IDLE_SECONDS:
            raise RuntimeError(f"worker process {process.pid} has not computed for {IDLE_SECONDS} s: it was stopped")


def shard_loss(model, part, prepare, seeds, learning: bool = True) -> Tensor:
    """The model's loss on ``part``, (images,) or (images, labels), with all noise from ``seeds``.

    Without ``learning`` it is the mean of the model's ``score``, if it has one.
    """
    rng = np.random.default_rng(seeds)
    x, *labels = prepared(model, part, prepare, rng)
    if learning or not hasattr(model, "score"):
        loss = model.loss(x, rng, *labels)
    else:
        loss = model.score(x, rng, *labels).mean()
    if not isinstance(loss, Tensor) or loss.size != 1:
        raise ValueError(f"{type(model).__name__}.loss: gave {loss!r}, needs a Tensor of one number, the mean")
    return loss


def prepared(model, part, prepare, rng) -> tuple:
    """What the model is called with: a Tensor of the images in ``part``, and the labels as an array.

    Floating-point images and labels are converted to the model's dtype, and the images are moved to its device.
    """
    images, *labels = part
    x = images if prepare is None else as_array(prepare(images.copy(), rng), "what prepare gave")  # may change its copy
    if x.shape[:1] != (len(images),):
        raise ValueError(f"prepare: gave shape {x.shape} for {len(images)} images, needs as many")
    x, *labels = (a.astype(model.dtype, copy=False) if a.dtype.kind == "f" else a for a in (x, *labels))
    return Tensor(to_device(x, model.device)), *labels


def _same(a, b):
    return a is b or (isinstance(a, int | float | str) and type(a) is type(b) and a == b)


def _shared(shape, dtype):
    """An array of zeros in memory that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
