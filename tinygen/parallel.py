"""Means over a minibatch, by several processes: forked workers on one machine, and MPI's ranks on one or many.

The images are cut into shards of a fixed size. Each rank takes every so many-th shard and its workers every so many-th
of those; whoever computes it, a shard has its own noise and its own place in the sum, so the result is the same to the
last bit for any number of workers.

Workers are processes and not threads since a step is made of many small NumPy calls, between which threads wait for the
interpreter's lock. Measured on two cores, 64 images: two threads are 0.8 to 1.5 times as fast as one (autoencoder to
PixelCNN), two processes 1.8 to 2.
"""

import contextlib
import ctypes
import functools
import math
import mmap
import multiprocessing
import os
import signal
import sys

import numpy as np

from tinygen.backend import flatten, split, sum_over_ranks, to_device, xp
from tinygen.tensor import Tensor, grad, no_grad

SHARD = 16  # images a worker takes at once: few enough for its cache, enough to keep NumPy's calls large


def communicator():
    """MPI's, where the script was started with ``mpiexec -n N python -m mpi4py`` and N > 1; else None."""
    if "mpi4py" not in sys.modules:
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None


def first_rank() -> bool:
    """Whether this process is the one that prints, draws and writes: always, except on MPI's further ranks."""
    comm = communicator()
    return comm is None or comm.rank == 0


def of_first_rank(value):
    """The first rank's ``value``, on all ranks."""
    comm = communicator()
    return value if comm is None else comm.bcast(value)


@contextlib.contextmanager
def processes(model, prepare, workers: int | None, batch: int, others: int):
    """``Workers`` for gradients of up to ``batch`` images and losses of up to ``others``; ended with the block."""
    from threadpoolctl import threadpool_limits

    if workers is not None and workers < 1:
        raise ValueError(f"workers: got {workers}, needs at least 1")
    if model.device != "cpu":
        yield Workers(model, prepare, 1, 1)
        return
    _keep_memory()
    # BLAS's own threads collapse when another program uses a core, and workers keep all cores busy.
    with threadpool_limits(1, user_api="blas"):
        count = min(_cores() if workers is None else workers, -(-max(batch, others) // SHARD))
        crew = Workers(model, prepare, max(1, -(-batch // SHARD)), count)
        try:
            yield crew
        finally:
            crew.close()


def _cores():
    """Cores that this process may use; its share of them where there are more ranks on the machine."""
    if not sys.platform.startswith("linux") or multiprocessing.current_process().daemon:
        return 1  # elsewhere a fork is missing or not safe for the system's BLAS; a daemon may not have any
    comm, cores = communicator(), len(os.sched_getaffinity(0))
    if comm is None:
        return cores
    from mpi4py import MPI

    return max(1, cores // comm.Split_type(MPI.COMM_TYPE_SHARED).size)


@functools.cache
def _keep_memory():
    """Have glibc keep freed blocks for the next step instead of returning them to the system (for the whole process).

    Measured: otherwise half of a PixelCNN's step is spent in page faults on the same few arrays, over and over.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        m_trim_threshold, m_top_pad, m_mmap_threshold = -1, -2, -3  # from malloc.h
        mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25)  # older ones allow no more
        mallopt(m_trim_threshold, (1 << 31) - 1)
        mallopt(m_top_pad, 1 << 26)


class Workers:
    """This process and ``count`` - 1 forked from it, which have the model, ``prepare`` and all else as it is now.

    Weights go to them and gradients come back through memory that all share, the rest through pipes.
    """

    def __init__(self, model, prepare, shards, count):
        self.model, self.prepare, self.comm = model, prepare, communicator()
        self.parameters = list(model.parameters())
        self.slots, self.processes, self.pipes = [None] * shards, [], []  # slots: a shard's gradient
        self.size, dtypes = sum(p.size for p in self.parameters), {p.dtype for p in self.parameters}
        self.dtype = np.result_type(*dtypes)
        if count == 1 or len(dtypes) > 1:  # several dtypes do not fit into one row of weights
            return
        self.weights, self.slots = _shared((self.size,), self.dtype), _shared((shards, self.size), self.dtype)
        fork = multiprocessing.get_context("fork")
        for _ in range(count - 1):
            ours, theirs = fork.Pipe()
            self.pipes.append(ours)  # before the fork, since a worker closes its copies of our ends
            self.processes.append(fork.Process(target=self._serve, args=(theirs,), daemon=True))
            self.processes[-1].start()
            theirs.close()

    def close(self):
        """End the workers, whatever they are at."""
        for pipe, process in zip(self.pipes, self.processes):
            pipe.close()
            process.kill()
            process.join()

    def mean(self, images, seeds, gradients: bool = True, stop=lambda: False):
        """The mean loss over ``images``, its gradient as one flat array, and whether any rank says ``stop()``.

        On a device nothing of it is waited for.
        """
        rank, ranks = (self.comm.rank, self.comm.size) if self.comm else (0, 1)
        on_cpu = self.model.device == "cpu"
        size = SHARD if on_cpu else -(-len(images) // ranks)
        parts = [(images[start : start + size], [*seeds, i]) for i, start in enumerate(range(0, len(images), size))]
        tasks = [(k, len(part) / len(images), part, seed) for k, (part, seed) in enumerate(parts[rank::ranks])]
        shares = [tasks[i :: len(self.pipes) + 1] for i in range(len(self.pipes) + 1)]
        if self.pipes:
            self.weights[...] = flatten([p.data for p in self.parameters])
        for pipe, share in zip(self.pipes, shares[1:]):
            pipe.send((share, gradients))
        losses = self._run(shares[0], gradients)
        for pipe, share in zip(self.pipes, shares[1:]):
            losses |= self._received(pipe) or self._run(share, gradients)  # to have its exception here, in full
        loss, stopping, m = sum(losses[k] for k in sorted(losses)), stop(), xp(self.parameters[0].data)
        flat = m.zeros(self.size if gradients else 0, self.dtype)
        if gradients and tasks:
            flat = sum(self.slots[: len(tasks)])
        if self.comm is not None:
            ends = m.zeros(2, self.dtype if gradients else np.float64)
            ends[0], ends[1] = loss, stopping
            total = sum_over_ranks(m.concatenate([ends, flat]), self.comm)
            loss, stopping, flat = total[0], total[1], total[2:]
        return loss, flat, stopping

    def _run(self, share, gradients):
        """{slot: weighted loss} of a share of the shards; their weighted gradients go into the slots."""
        losses = {}
        for slot, weight, images, seeds in share:
            with contextlib.nullcontext() if gradients else no_grad():
                loss = shard_loss(self.model, images, self.prepare, seeds)
            if gradients:
                found = grad(loss, self.parameters)
                self.slots[slot] = flatten([g.data for g in found]) * weight
            losses[slot] = (loss.item() if self.model.device == "cpu" else loss.data) * weight
        return losses

    def _serve(self, pipe):
        """A worker's life."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
        for other in self.pipes:
            other.close()
        self.pipes = []
        for p, values in zip(self.parameters, split(self.weights, self.parameters)):
            p.data = values
        with contextlib.suppress(EOFError, OSError):  # the first process has gone
            while True:
                share, gradients = pipe.recv()
                try:
                    losses = self._run(share, gradients)
                except Exception:
                    losses = None
                pipe.send(losses)

    def _received(self, pipe):
        try:
            return pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("a worker process was ended from outside, perhaps for want of memory") from error


def shard_loss(model, images, prepare, seeds) -> Tensor:
    """The model's loss on ``images``, with all noise from ``seeds``."""
    rng = np.random.default_rng(seeds)
    x = images if prepare is None else prepare(images, rng)
    return model.loss(Tensor(to_device(x, model.device)), rng)


def _shared(shape, dtype):
    """An array of zeros in memory that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
