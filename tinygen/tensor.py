"""Reverse-mode automatic differentiation: Tensor, Op, grad(), no_grad().

A Tensor is an array plus the Op that made it. An Op remembers its input Tensors; following them backwards from a
result visits every step of its computation. ``grad`` does that in the reverse of the order in which the steps were made
and applies the chain rule at each. An Op's backward is written in Tensor operations, so a derivative is a computation
like any other and can be differentiated again.
"""

import contextlib
import itertools
import threading
from collections.abc import Sequence

import numpy as np

from tinygen import backend

_order = itertools.count()  # every recorded Op gets the next number: an Op's inputs always have smaller ones


class _Recording(threading.local):
    paused = 0  # how many no_grad blocks this thread is inside


_recording = _Recording()  # for each thread


class no_grad(contextlib.ContextDecorator):
    """Nothing computed inside records how it was computed: ``with no_grad():`` or ``@no_grad()``."""

    def __enter__(self):
        _recording.paused += 1

    def __exit__(self, *exception):
        _recording.paused -= 1


def recording() -> bool:
    """Whether steps are recorded here: not under no_grad, nor in a derivative without create_graph."""
    return not _recording.paused


class Tensor:
    """An array that remembers how it was computed.

    ``Tensor(data, requires_grad=False)`` makes a leaf. ``data`` is a NumPy or CuPy array, used as it is, or a number
    or nested list (floats become float32). ``requires_grad`` needs a floating dtype.

    Attributes: ``data`` the array; ``grad`` the gradient that ``backward`` left on a leaf, or None.
    Comparisons give plain boolean arrays; assignment to a part is refused.
    """

    __slots__ = ("__weakref__", "_index", "_op", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # so that ndarray * Tensor is left to Tensor.__rmul__
    __hash__ = object.__hash__

    def __init__(self, data, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor: data is a Tensor already; use it, or its .detach()")
        if not hasattr(data, "dtype"):
            data = np.asarray(data)
            if data.dtype == np.float64:
                data = data.astype(np.float32)
        if data.dtype.kind not in "fiub":
            raise TypeError(f"Tensor: data has dtype {data.dtype}, needs real numbers")
        if requires_grad and data.dtype.kind != "f":
            raise TypeError(f"Tensor: requires_grad needs a floating dtype, data has {data.dtype}")
        self.data = data
        self.grad = None
        self.requires_grad = requires_grad
        self._op = None
        self._index = 0

    # -- what it is

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return backend.device_of(self.data)

    def __repr__(self):
        made = f", made by {type(self._op).__name__}" if self._op else ", requires_grad" if self.requires_grad else ""
        values = np.array2string(self.numpy(), threshold=20, precision=4, separator=", ", prefix="Tensor(")
        return f"Tensor({values}, shape {self.shape}, {self.dtype} on {self.device}{made})"

    # -- out of the graph

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array (a copy only from another device), outside the graph."""
        return backend.to_host(self.data)

    def item(self) -> float:
        """The value of a one-element Tensor as a Python number (waits for the device)."""
        return self.data.item()

    def detach(self) -> "Tensor":
        """The same array as a constant: gradients stop here."""
        return Tensor(self.data)

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise TypeError("a Tensor that requires grad does not turn into an array by itself: use .numpy()")
        return np.array(self.data, dtype=dtype)

    def __float__(self):
        return float(self.item())

    def __bool__(self):
        return bool(self.data)

    def __len__(self):
        return len(self.data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __lt__(self, other):
        return self.data < _array(other)

    def __le__(self, other):
        return self.data <= _array(other)

    def __gt__(self, other):
        return self.data > _array(other)

    def __ge__(self, other):
        return self.data >= _array(other)

    def __eq__(self, other):
        return self.data == _array(other)

    def __ne__(self, other):
        return self.data != _array(other)

    def __setitem__(self, index, value):
        raise TypeError(
            "a Tensor's values cannot be assigned in place, since earlier steps may need them for their derivatives: "
            "build a new one with ops.where, ops.concatenate or ops.pad, or write to .data of a leaf outside the graph"
        )

    # -- derivatives

    def backward(self) -> None:
        """Add the derivative of this one-element Tensor to ``.grad`` of every leaf that requires grad.

        A second call adds the same derivatives again; only leaves are touched. Set ``leaf.grad = None`` to start anew.
        Raises ValueError where there is nothing to differentiate or the Tensor has more than one element.
        """
        leaves = {id(x): x for op in history([self]) for x in op.inputs if x._op is None and x.requires_grad}
        leaves = list(leaves.values()) or [self]
        for leaf, g in zip(leaves, grad(self, leaves)):
            leaf.grad = Tensor(g.data.copy() if leaf.grad is None else leaf.grad.data + g.data)


# The operators (+, -, *, /, **, @, [], .sum, .reshape, ...) are attached by tinygen.ops, which defines them.


def _array(other):
    return other.data if isinstance(other, Tensor) else other


class Op:
    """One step of a computation. A subclass defines

    ``forward(*arrays) -> array`` (or a tuple of arrays) on arrays, and
    ``backward(*gradients) -> gradient or tuple`` on Tensors: from the gradient for each output (None for an output that
    nobody used) to that for each input (anything for one that needs none). There ``self.inputs`` and ``self.output``
    (the first) are Tensors, connected to the graph; ``self.result`` is what forward returned.

    Parameters that are not differentiated go to the constructor: ``Sum(axis)(x)``. An instance is used once.
    """

    def __call__(self, *inputs):
        like = next((x for x in inputs if isinstance(x, Tensor)), None)
        inputs = tuple(x if isinstance(x, Tensor) else _constant(x, like) for x in inputs)
        try:
            result = self.forward(*[x.data for x in inputs])
        except (ValueError, IndexError, TypeError) as error:
            raise self._explained(error, inputs) from error
        record = not _recording.paused and any(x.requires_grad for x in inputs)
        if record:
            self.inputs, self.result, self.order = inputs, result, next(_order)
        if isinstance(result, tuple):
            return tuple(self._output(i) if record else Tensor(y) for i, y in enumerate(result))
        return self._output(0) if record else Tensor(result)

    def _explained(self, error, inputs) -> Exception:
        """NumPy's or CuPy's ``error``, with the operation and what it was given."""
        backend.xp(*(x.data for x in inputs))  # some on the host, some on the device: says so
        given = ", ".join(f"{x.shape} {x.dtype}" for x in inputs)
        kind = next(k for k in (ValueError, IndexError, TypeError) if isinstance(error, k))
        return kind(f"{type(self).__name__}: {str(error).strip()} (given {given})")

    def _output(self, index: int) -> Tensor:
        tensor = Tensor(self.result[index] if isinstance(self.result, tuple) else self.result)
        tensor.requires_grad, tensor._op, tensor._index = True, self, index
        return tensor

    @property
    def output(self) -> Tensor:
        """The result, connected: made on demand, since storing it would tie Op and Tensor into a reference cycle."""
        return self._output(0)


def _constant(value, like: Tensor | None) -> Tensor:
    """A number takes the dtype of the Tensor it meets, as a NumPy scalar: those go with arrays on either device."""
    if like is not None and not hasattr(value, "get") and np.ndim(value) == 0:
        number = np.asarray(value)
        if number.dtype.kind in "fiub":
            takes = like.dtype.kind == "f" or (like.dtype.kind in "iu" and isinstance(value, int))
            other = np.dtype(np.float32) if isinstance(value, float) else number.dtype
            return Tensor((like.dtype if takes else other).type(value))
    if like is not None and like.dtype.kind == "f" and getattr(value, "dtype", like.dtype).kind in "iub":
        return Tensor(value.astype(like.dtype))  # whole numbers do not turn float32 into float64
    if like is not None and isinstance(value, list | tuple):
        dtype = like.dtype if like.dtype.kind == "f" else None
        return Tensor(backend.to_device(np.asarray(value, dtype), like.device))
    return Tensor(value)


def history(outputs) -> list[Op]:
    """The recorded Ops that ``outputs`` were computed by, oldest first."""
    ops, todo = {}, [y._op for y in outputs]
    while todo:  # a loop, not a recursion: a chain of 100,000 steps is fine
        op = todo.pop()
        if op is not None and op.order not in ops:
            ops[op.order] = op
            todo += [x._op for x in op.inputs]
    return [ops[order] for order in sorted(ops)]


def _key(tensor: Tensor):
    """The value a Tensor stands for: an Op's output, however many Tensor objects stand for it, or a leaf."""
    return id(tensor) if tensor._op is None else (id(tensor._op), tensor._index)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs=None,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of ``sum_i <grad_outputs[i], outputs[i]>`` with respect to each of ``inputs``, as a tuple.

    ``grad_outputs``: one array or Tensor for each output, of its shape; may be left out (or None) for outputs of one
    element. ``create_graph``: record the derivative's own computation, so that it can be differentiated again.
    Nothing is stored in ``.grad``; the graph stays as it is, so a second call gives the same.
    Raises ValueError for an input that none of the outputs depends on: there is no silent zero.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif not isinstance(grad_outputs, list | tuple):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad_outputs has {len(grad_outputs)} entries, outputs {len(outputs)}")

    sums, owned = {}, set()  # by value: its gradient so far; those that were made here, which nobody else sees change

    def add(tensor, g):
        key, g = _key(tensor), g if g.dtype == tensor.dtype else g.astype(tensor.dtype)
        if key not in sums:
            sums[key] = g
        elif key in owned:
            sums[key].data += g.data
        else:
            sums[key] = sums[key] + g
            if not create_graph and g.ndim:
                owned.add(key)

    for i, (y, gy) in enumerate(zip(outputs, grad_outputs)):
        if not y.requires_grad:
            raise ValueError(f"outputs[{i}] depends on nothing that requires grad (or was computed under no_grad)")
        if gy is None:
            if y.size != 1:
                raise ValueError(f"outputs[{i}] has shape {y.shape}: give grad_outputs, or reduce it to one number")
            gy = Tensor(backend.xp(y.data).ones_like(y.data))
        gy = gy if isinstance(gy, Tensor) else _constant(gy, y)
        if gy.shape != y.shape:
            raise ValueError(f"grad_outputs[{i}] has shape {gy.shape}, outputs[{i}] has {y.shape}")
        backend.xp(gy.data, y.data)  # both on one device, or it says so
        add(y, gy)

    wanted = {_key(x) for x in inputs}
    ops, leads = history(outputs), {}  # leads: the Ops on a path to a wanted Tensor, by id, oldest first

    def needed(x):
        return _key(x) in wanted or id(x._op) in leads

    for op in ops:
        if any(needed(x) for x in op.inputs):
            leads[id(op)] = op

    with contextlib.nullcontext() if create_graph else no_grad():
        for op in reversed(leads.values()):
            keys = [(id(op), i) for i in range(len(op.result) if isinstance(op.result, tuple) else 1)]
            gxs = op.backward(*[sums.get(key) for key in keys])
            for x, gx in zip(op.inputs, gxs if isinstance(gxs, tuple) else (gxs,), strict=True):
                if not x.requires_grad or not needed(x):
                    continue
                if gx is None or gx.shape != x.shape:
                    got = None if gx is None else gx.shape
                    raise ValueError(f"{type(op).__name__}.backward gave {got} for an input of shape {x.shape}")
                add(x, gx)
            for key in keys:
                if key not in wanted:
                    sums.pop(key, None)  # complete and passed on: free the memory

    for i, x in enumerate(inputs):
        if _key(x) not in sums:
            why = "is not part of the outputs' computation" if x.requires_grad else "does not require grad"
            raise ValueError(f"inputs[{i}] (shape {x.shape}) {why}: it has no derivative")
    return tuple(sums[_key(x)] for x in inputs)
