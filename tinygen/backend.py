"""NumPy or CuPy: the only file that imports CuPy. It also has the communication between MPI's ranks.

All other code calls ``xp(array)`` to get the array's module and is written once for both. CuPy is imported when an
array first moves to the device, never before.
"""

import functools
import itertools
import math
import sys

import numpy


def xp(*arrays):
    """The module, ``numpy`` or ``cupy``, that the arrays belong to. NumPy scalars work with either.

    Raises ValueError where some are on the host and some on the device.
    """
    host = device = False
    for array in arrays:
        if isinstance(array, numpy.ndarray):
            host = True
        elif not isinstance(array, numpy.generic):
            device = True
    if host and device:
        raise ValueError("one array is on the cpu, another on cuda: move model and inputs with .to(device)")
    if device and "cupy" not in sys.modules:
        raise TypeError(f"needs NumPy or CuPy arrays, got {', '.join(type(array).__name__ for array in arrays)}")
    return sys.modules["cupy"] if device else numpy


def device_of(array) -> str:
    """``"cpu"`` or ``"cuda"``."""
    return "cpu" if xp(array) is numpy else "cuda"


def to_device(array, device: str):
    """``array`` on ``device`` (``"cpu"`` or ``"cuda"``); the array itself if it is there already.

    Raises ValueError for another device name, RuntimeError if CuPy or a CUDA device is missing.
    """
    if not isinstance(device, str) or device not in ("cpu", "cuda"):
        raise ValueError(f"device: got {device!r}, needs 'cpu' or 'cuda'")
    if device == "cpu":
        return to_host(array)
    try:
        import cupy
    except ImportError:
        raise RuntimeError(
            "device='cuda' needs CuPy: install the extra tinygen[cuda13], or tinygen[cuda12] for a CUDA 12 driver"
        ) from None
    if not cupy.is_available():
        raise RuntimeError(
            "device='cuda': CuPy is installed but finds no CUDA device; check the driver and that the extra "
            "(tinygen[cuda12] or tinygen[cuda13]) matches it, or use device='cpu'"
        )
    if communicator() is not None:  # the ranks of a machine take its devices in turn
        cupy.cuda.Device(ranks_on_this_machine()[0] % cupy.cuda.runtime.getDeviceCount()).use()
    return cupy.asarray(array)


def to_host(array) -> numpy.ndarray:
    """``array`` as a NumPy array. Copying from a device waits for the device."""
    return numpy.asarray(array if xp(array) is numpy else array.get())


def erf(array):
    """The error function, which NumPy lacks, in ``array``'s floating dtype."""
    if xp(array) is numpy:
        values = numpy.fromiter(map(math.erf, array.flat), float, array.size).reshape(array.shape)
    else:
        from cupyx.scipy.special import erf

        values = erf(array)
    return values.astype(numpy.result_type(array.dtype, numpy.float16), copy=False)


def flatten(arrays):
    """The arrays, flattened and concatenated."""
    return xp(*arrays).concatenate([array.ravel() for array in arrays])


def split(flat, like) -> list:
    """The inverse of ``flatten``: views of ``flat`` in the shapes of the arrays ``like``."""
    starts = itertools.accumulate((array.size for array in like), initial=0)
    return [flat[start : start + array.size].reshape(array.shape) for start, array in zip(starts, like)]


def communicator():
    """MPI's communicator if the script was started with ``mpiexec -n N python -m mpi4py`` and N > 1, else None."""
    if "mpi4py" not in sys.modules:
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD if MPI.COMM_WORLD.size > 1 else None


@functools.cache
def ranks_on_this_machine() -> tuple[int, int]:
    """This rank's index among the ranks on its machine, and their number. All ranks must call it together."""
    if communicator() is None:
        return 0, 1
    from mpi4py import MPI

    here = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    return here.rank, here.size


def sum_over_ranks(array, comm):
    """The sum of ``array`` over the ranks of an MPI communicator, on every rank: by MPI, or on a device by NCCL."""
    total = xp(array).empty_like(array)
    if xp(array) is numpy:
        comm.Allreduce(array, total)
    else:
        _nccl(comm.size, comm.rank).all_reduce(array, total)
    return total


@functools.cache
def _nccl(size, rank):
    from cupyx.distributed import init_process_group

    return init_process_group(size, rank, use_mpi=True)
