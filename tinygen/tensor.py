"""Reverse-mode automatic differentiation: Tensor, Op, grad(), no_grad().

A Tensor is an array plus the Op that made it. An Op remembers its input Tensors; following them backwards from a
result visits every step of its computation. ``grad`` does that in the reverse of the order in which the steps were made
and applies the chain rule at each. An Op's backward is written in Tensor operations, so a derivative is a computation
like any other and can be differentiated again.
"""

import contextlib
import itertools
import math
import operator
import threading
from collections.abc import Sequence

import numpy as np

from tinygen import backend

_numbers = itertools.count()  # each recorded Op takes the next number, so its inputs come from Ops with smaller ones


class _Recording(threading.local):
    paused = 0  # how many no_grad blocks this thread is inside
    keeping = 0  # how many keep_values blocks this thread is inside


_recording = _Recording()  # separate for each thread


class no_grad(contextlib.ContextDecorator):
    """Turn recording off: results computed inside have no graph. ``with no_grad():`` or ``@no_grad()``."""

    def __enter__(self):
        _recording.paused += 1

    def __exit__(self, *exception):
        _recording.paused -= 1


@contextlib.contextmanager
def enable_grad():
    """Turn recording on, also inside ``no_grad``: for values that are made of derivatives, such as a divergence."""
    paused, _recording.paused = _recording.paused, 0
    try:
        yield
    finally:
        _recording.paused = paused


class keep_values(contextlib.ContextDecorator):
    """Ops recorded inside keep all their values for inspection, even those that their derivatives do not need."""

    def __enter__(self):
        _recording.keeping += 1

    def __exit__(self, *exception):
        _recording.keeping -= 1


def recording() -> bool:
    """Whether Ops are recorded: False under no_grad, and in ``grad`` without create_graph."""
    return not _recording.paused


class _Ufuncs:
    """The attribute ``__array_ufunc__``: NumPy looks it up on the class, CuPy on the Tensor.

    CuPy gets None, so that ``array * Tensor`` calls ``Tensor.__rmul__``; NumPy gets ``called``.
    """

    def __get__(self, tensor, owner):
        return None if tensor is not None else self.called

    @staticmethod
    def called(tensor, ufunc, method, *inputs, **options):
        """Compute ``array * Tensor``, which NumPy passes as np.multiply. Other ufuncs raise a helpful TypeError."""
        reflected = _REFLECTED.get(ufunc.__name__)
        if reflected and method == "__call__" and not options and inputs[1] is tensor:
            return getattr(tensor, reflected)(inputs[0])
        if options.get("out", (None,))[0] is inputs[0]:
            raise TypeError(
                f"np.{ufunc.__name__} cannot write a Tensor into an array: use its data, as in x.data -= g.data, or "
                f"tinygen.ops.{ufunc.__name__}"
            )
        raise _no_numpy_function(ufunc.__name__)


_REFLECTED = {
    **{"add": "__radd__", "subtract": "__rsub__", "multiply": "__rmul__", "divide": "__rtruediv__"},
    **{"power": "__rpow__", "matmul": "__rmatmul__", "less": "__gt__", "less_equal": "__ge__"},
    **{"greater": "__lt__", "greater_equal": "__le__", "equal": "__eq__", "not_equal": "__ne__"},
}


def _no_numpy_function(name):
    from tinygen import ops

    same = {"absolute": "abs", "subtract": "sub", "multiply": "mul", "divide": "div", "negative": "neg", "power": "pow"}
    use = f"tinygen.ops.{same.get(name, name)}" if hasattr(ops, same.get(name, name)) else "a function of tinygen.ops"
    return TypeError(f"np.{name} does not take Tensors: use {use}, or x.numpy() for the values outside the graph")


class Tensor:
    """An array that remembers how it was computed.

    ``Tensor(data, requires_grad=False)`` makes a leaf. ``data`` is a NumPy or CuPy array, used without a copy, or a
    number or nested list (floats become float32). ``requires_grad`` needs a floating dtype.

    Attributes: ``data`` is the array; ``grad`` is the gradient that ``backward`` left on a leaf, or None.
    Comparisons return boolean arrays, and ``x[i] = value`` raises TypeError. A new array may be assigned to ``data`` of
    a leaf (``x.data -= step``); differentiating what was computed from the old one then raises RuntimeError. Writing
    into the array itself (``x.data[0] = 1``) is not detected.
    """

    __slots__ = ("__weakref__", "_data", "_index", "_op", "_version", "grad", "requires_grad")
    __array_ufunc__ = _Ufuncs()
    __hash__ = object.__hash__

    def __init__(self, data, requires_grad: bool = False):
        if isinstance(data, Tensor):
            raise TypeError("Tensor: data is a Tensor already; use it, or its .detach()")
        if not isinstance(data, np.ndarray) or data.dtype.kind not in "fiub":
            data = as_array(data, "Tensor: data")
        if requires_grad is not False and as_flag(requires_grad, "requires_grad") and data.dtype.kind != "f":
            raise TypeError(f"Tensor: requires_grad needs a floating dtype, data has {data.dtype}")
        self._data = data
        self._op, self._index, self._version = None, 0, [0]
        self.requires_grad, self.grad = requires_grad, None

    # -- attributes

    data = property(operator.attrgetter("_data"), doc="The values.")

    @data.setter
    def data(self, array):
        if self._op is not None:
            raise TypeError("data: only a leaf's values can be assigned; this Tensor was computed, use its .detach()")
        self._data = as_array(array, "data")
        self._version[0] += 1  # x.data -= step also ends here, after changing the array that recorded Ops may need

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""
        return backend.device_of(self._data)

    def __repr__(self):
        made = f", made by {type(self._op).__name__}" if self._op else ", requires_grad" if self.requires_grad else ""
        values = np.array2string(self.numpy(), threshold=20, precision=4, separator=", ", prefix="Tensor(")
        return f"Tensor({values}, shape {self.shape}, {self.dtype} on {self.device}{made})"

    # -- values outside the graph

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array outside the graph; only values on a device are copied."""
        return backend.to_host(self.data)

    def item(self) -> float:
        """The value of a one-element Tensor as a Python number (waits for the device)."""
        return self.data.item()

    def detach(self) -> "Tensor":
        """The same array as a constant: gradients stop here."""
        tensor = Tensor(self.data)
        if self._version is not _FIXED:
            tensor._version = self._version  # both share the leaf's memory: changing one changes the other
        return tensor

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise TypeError("a Tensor that requires grad is not converted to an array implicitly: use .numpy()")
        return np.array(self.data, dtype=dtype)

    def __array_function__(self, function, types, args, kwargs):
        if function in (np.shape, np.ndim, np.size):
            return getattr(self, function.__name__)
        raise _no_numpy_function(function.__name__)

    def __reduce_ex__(self, protocol):
        if self._op is not None:  # a copy of the graph would have its own leaves: no gradient would reach these
            raise TypeError("a computed Tensor is not copied or pickled: use it as it is, or copy its .detach()")
        return super().__reduce_ex__(protocol)

    def __float__(self):
        return float(self.item())

    def __bool__(self):
        return bool(self.data)

    def __len__(self):
        if not self.ndim:
            raise TypeError("a Tensor of one number, of shape (), is no sequence: use x.item()")
        return len(self.data)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __lt__(self, other):
        return self.data < _ordered(other)

    def __le__(self, other):
        return self.data <= _ordered(other)

    def __gt__(self, other):
        return self.data > _ordered(other)

    def __ge__(self, other):
        return self.data >= _ordered(other)

    def __eq__(self, other):
        return self.data == _array(other)

    def __ne__(self, other):
        return self.data != _array(other)

    def __setitem__(self, index, value):
        raise TypeError(
            "a Tensor's values cannot be assigned in place, since earlier steps may need them for their derivatives: "
            "build a new one with ops.where, ops.concatenate or ops.pad, or assign a new array to .data of a leaf"
        )

    def _in_place(self, other):
        if self._op is None and self.requires_grad and not recording():
            raise TypeError("a Tensor is not changed in place: write x.data -= step for the values of a leaf x")
        return NotImplemented  # Python then computes x = x + y

    __iadd__ = __isub__ = __imul__ = __itruediv__ = _in_place

    # -- derivatives

    def backward(self) -> None:
        """Add the derivative of this one-element Tensor to ``.grad`` of every leaf that requires grad.

        A second call adds the same derivatives again; set ``leaf.grad = None`` to start anew. Only leaves get a grad.
        Raises ValueError where there is nothing to differentiate or the Tensor has more than one element.
        """
        leaves = {id(x): x for op in history([self]) for x in op.inputs if x._op is None and x.requires_grad}
        leaves = list(leaves.values()) or [self]
        for leaf, g in zip(leaves, grad(self, leaves)):
            leaf.grad = Tensor(g.data.copy() if leaf.grad is None else leaf.grad.data + g.data)


# The operators (+, -, *, /, **, @, [], .sum, .reshape, ...) are attached by tinygen.ops, which defines them.


def _array(other):
    return other.data if isinstance(other, Tensor) else other


def _ordered(other):
    """The right-hand side of <, <=, > or >=: a number or an array. Raises TypeError for anything else."""
    return other if isinstance(other, int | float) else as_array(other, "comparison")


def as_array(value, name: str):
    """``value`` as an array: the data of a Tensor, a NumPy or CuPy array unchanged, or a number or nested list.

    Floats in numbers and lists become float32. Raises TypeError, with ``name`` in it, unless the numbers are real.
    """
    value = _array(value)
    array = value
    if not hasattr(value, "dtype"):
        with contextlib.suppress(ValueError, RuntimeError):  # NumPy raises for lists of different lengths
            array = np.asarray(value)
            array = array.astype(np.float32) if array.dtype == np.float64 else array
    if getattr(getattr(array, "dtype", None), "kind", "?") not in "fiub":
        dtype = f" of dtype {array.dtype}" if hasattr(array, "dtype") else ""
        found = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise TypeError(
            f"{name} is {found}{dtype}, needs real numbers: a NumPy or CuPy array, a number, or a list whose parts "
            "have one length (for a torch tensor t: t.detach().cpu().numpy())"
        )
    return array


def as_flag(value, name: str) -> bool:
    """``value`` itself. Raises TypeError unless it is True or False."""
    if value is not True and value is not False and not isinstance(value, np.bool_):
        raise TypeError(f"{name}: got {value!r}, needs True or False")
    return value


def as_tensor(value, name: str) -> Tensor:
    """``value`` itself if it is a Tensor, else a Tensor of its array."""
    return value if isinstance(value, Tensor) else Tensor(as_array(value, name))


def as_list(tensors, name: str) -> list[Tensor]:
    """One Tensor or several as a list. Raises TypeError for anything else."""
    several = [tensors] if isinstance(tensors, Tensor) or not hasattr(tensors, "__iter__") else list(tensors)
    if not all([isinstance(x, Tensor) for x in several]):
        raise TypeError(f"{name}: got {tensors!r}, needs a Tensor or a sequence of them")
    return several


class Op:
    """One step of a computation. A subclass defines

    ``forward(*arrays) -> array`` (or a tuple of arrays) on arrays, and
    ``backward(*gradients) -> gradient or tuple`` on Tensors: it takes a gradient for each output (None for an unused
    one) and returns one for each input (None where no gradient is needed). Inside backward, ``self.inputs`` and
    ``self.output`` (the first output) are Tensors of the graph, and ``self.result`` is what forward returned.

    ``saves`` lists the values that backward reads: "inputs", "output" or both. Without "inputs", only the shapes and
    dtypes of the inputs are kept. Arguments that are not differentiated go to the constructor: ``Sum(axis)(x)``.
    """

    saves = ("inputs", "output")

    def __call__(self, *inputs):
        if not all([isinstance(x, Tensor) and x.dtype.kind == "f" for x in inputs]):
            inputs = _as_tensors(type(self).__name__, inputs)
        op = self
        if record := not _recording.paused and any([x.requires_grad for x in inputs]):
            op = object.__new__(type(self))  # each call is recorded as a separate Op
            op.__dict__.update(self.__dict__)
        try:
            result = op.forward(*[x._data for x in inputs])
        except (ValueError, IndexError, TypeError) as error:
            raise self._explained(error, inputs) from error
        if result is None or isinstance(result, Tensor):
            raise TypeError(
                f"{type(self).__name__}.forward gave {type(result).__name__}, needs an array or a tuple of them"
            )
        if record:
            op._record(inputs, result)
        if isinstance(result, tuple):
            return tuple([_made_by(op, i, y, inputs) if record else Tensor(y) for i, y in enumerate(result)])
        return _made_by(op, 0, result, inputs) if record else Tensor(result)

    def _record(self, inputs, result):
        self._order, me = next(_numbers), id(self)
        self._keys = [(me, i) for i in range(len(result))] if isinstance(result, tuple) else [(me, 0)]
        saves = self.saves
        self._versions = [(x._version, x._version[0]) for x in inputs] if "inputs" in saves else ()
        if _recording.keeping:
            saves = Op.saves
        self.inputs = inputs if "inputs" in saves else tuple([_place(x) for x in inputs])
        self.result = result if "output" in saves else None

    def _explained(self, error, inputs) -> Exception:
        """The ``error`` of NumPy or CuPy, with the Op's name and its inputs added."""
        backend.xp(*(x.data for x in inputs))  # raises if some are on the host and some on the device
        given = ", ".join(f"{x.shape} {x.dtype}" for x in inputs)
        kind = next(k for k in (ValueError, IndexError, TypeError) if isinstance(error, k))
        text = str(error).strip()
        for name in ("shape", "axis", "keepdims"):  # NumPy's messages do not name these
            value = vars(self).get(name, 0)
            entries = value if isinstance(value, tuple) and name != "keepdims" else (value,)
            entries = () if name == "axis" and value is None else entries
            if not all(isinstance(n, int | np.integer) for n in entries):
                text = f"{name}: got {value!r}, needs whole numbers"
        return kind(f"{type(self).__name__}: {text} (given {given})")

    @property
    def output(self) -> Tensor:
        """The first output as a Tensor of the graph. It is made on demand: storing it would be a reference cycle."""
        if self.result is None:
            raise RuntimeError(f"{type(self).__name__}.saves is {self.saves}, needs 'output' for backward to read it")
        return _made_by(self, 0, self.result[0] if isinstance(self.result, tuple) else self.result)

    def _gradients(self, gys, on_path):
        """Call ``backward``, check its result, and yield (input, gradient) for each input on the path."""
        for i, (version, number) in enumerate(self._versions):
            if version[0] != number:
                raise RuntimeError(
                    f"{type(self).__name__}: its input {i} (shape {self.inputs[i].shape}) has got new values since "
                    "(optimizer.step() or an assignment to .data): compute the result again to differentiate it"
                )
        gxs = self.backward(*gys)
        gxs = gxs if isinstance(gxs, tuple) else (gxs,)
        if len(gxs) != len(self.inputs) or not all([gx is None or isinstance(gx, Tensor) for gx in gxs]):
            kinds = ", ".join(type(gx).__name__ for gx in gxs)
            raise TypeError(
                f"{type(self).__name__}.backward gave ({kinds}), needs {len(self.inputs)} Tensors, one per input"
            )
        for x, gx in zip(self.inputs, gxs):
            if _key(x) not in on_path:
                continue
            if gx is None or gx.shape != x.shape:
                got = None if gx is None else gx.shape
                raise ValueError(f"{type(self).__name__}.backward gave {got} for an input of shape {x.shape}")
            yield x, gx


_new = Tensor.__new__
_FIXED = [0]  # the version of all computed values, except views of a leaf


def _made_by(op, index, data, inputs=()) -> Tensor:
    """Output ``index`` of a recorded Op. A view of a leaf, such as x.T, shares the leaf's memory and its version."""
    tensor = _new(Tensor)
    tensor._data, tensor._op, tensor._index, tensor.requires_grad, tensor.grad = data, op, index, True, None
    tensor._version = _FIXED
    if data.base is not None or any([data is x._data for x in inputs]):
        for x in inputs:
            if x._version is not _FIXED and backend.xp(data, x._data).may_share_memory(data, x._data):
                tensor._version = x._version
    return tensor


class _Place(Tensor):
    """An input without its values: what an Op keeps if its ``saves`` does not list "inputs"."""

    __slots__ = ("dtype", "shape")

    @property
    def _data(self):
        raise RuntimeError("the values of this input were not kept: add 'inputs' to the operation's saves")


def _place(x):
    if x._op is None and x.requires_grad:
        return x  # a leaf is identified by the object itself
    place = _new(_Place)
    place.shape, place.dtype = x._data.shape, x._data.dtype
    place._op, place._index, place.requires_grad = x._op, x._index, x.requires_grad
    return place


def _as_tensors(op, inputs):
    """Inputs of an Op as Tensors; integers are converted to the dtype of a floating-point input, if any."""
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    like = next((x for x in tensors if x.dtype.kind == "f"), tensors[0] if tensors else None)
    return tuple(
        x
        if isinstance(x, Tensor) and (x.dtype.kind == "f" or like.dtype.kind != "f")
        else _constant(_array(x), like, op)
        for x in inputs
    )


def _constant(value, like: Tensor | None, name: str) -> Tensor:
    """``value`` as a Tensor to combine with ``like``. A number becomes a NumPy scalar, which works on any device."""
    if type(value) in (int, float) and abs(value) < 1e4 and like is not None and like.dtype.kind == "f":
        # The usual case: what is below would find the same, and takes three times as long.
        return Tensor(like.dtype.type(value))
    if like is not None and not hasattr(value, "get") and not isinstance(value, list | tuple) and np.ndim(value) == 0:
        number = np.asarray(value)
        if number.dtype.kind in "fiub":
            takes = like.dtype.kind == "f" or (like.dtype.kind in "iu" and isinstance(value, int))
            other = np.dtype(np.float32) if isinstance(value, float) else number.dtype
            return Tensor((like.dtype if takes else other).type(value))
    array = as_array(value, f"{name}: an input")
    if like is not None and like.dtype.kind == "f" and array is value and array.dtype.kind in "iub":
        return Tensor(array.astype(like.dtype))  # otherwise integers would turn float32 into float64
    if like is not None and isinstance(value, list | tuple):
        dtype = like.dtype if like.dtype.kind == "f" else None
        return Tensor(backend.to_device(np.asarray(value, dtype), like.device))
    return Tensor(array)


# -- reverse mode


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs=None,
    create_graph: bool = False,
    materialize_grads: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of ``sum_i <grad_outputs[i], outputs[i]>`` with respect to each of ``inputs``, as a tuple.

    ``grad_outputs``: an array or Tensor for each output, with the output's shape, or None for outputs of one element.
    ``create_graph``: record the computation of the gradients, so that they can be differentiated again.
    ``materialize_grads``: return zeros for an input that no output depends on, which is otherwise an error.
    Nothing is stored in ``.grad``, and the graph is kept, so a second call returns the same gradients.
    Raises ValueError if there is no derivative or shapes do not fit, RuntimeError if a leaf has been assigned new
    values since the outputs were computed.
    """
    outputs, inputs = as_list(outputs, "grad: outputs"), as_list(inputs, "grad: inputs")
    as_flag(create_graph, "grad: create_graph"), as_flag(materialize_grads, "grad: materialize_grads")
    wanted = {_key(x) for x in inputs}
    # What was computed before all of the inputs does not lead from them to the outputs
    after = min([-1 if x._op is None else x._op._order for x in inputs], default=-1)
    steps, on_path = _steps_between(outputs, wanted, after)
    sums = {}  # key of a value: the sum of its gradients so far
    for y, gy in zip(outputs, _cotangents(outputs, grad_outputs, materialize_grads)):
        _add(sums, y, gy)
    with contextlib.nullcontext() if create_graph else no_grad():
        for op in reversed(steps):  # all users of op's outputs came before, so their gradients are complete
            gys = [sums.get(key) if key in wanted else sums.pop(key, None) for key in op._keys]
            for x, gx in op._gradients(gys, on_path):
                _add(sums, x, gx)
    return tuple(_gradient_of(x, i, sums, materialize_grads) for i, x in enumerate(inputs))


def _key(tensor: Tensor):
    """Identifies a value: a leaf by its object, an output by Op and index, since several Tensors may hold an output."""
    return id(tensor) if tensor._op is None else (id(tensor._op), tensor._index)


def history(outputs, after: int = -1) -> list[Op]:
    """The recorded Ops that computed ``outputs``, oldest first; only those made after the one of number ``after``."""
    ops, todo = {}, [y._op for y in outputs]
    while todo:  # a loop and no recursion, so that a chain of 100,000 steps works
        op = todo.pop()
        if op is not None and op._order > after and op._order not in ops:
            ops[op._order] = op
            todo += [x._op for x in op.inputs]
    return [ops[order] for order in sorted(ops)]


def _steps_between(outputs, wanted, after):
    """The Ops on a path from a wanted value to an output, oldest first, and the keys of all values on these paths."""
    steps, on_path = [], set(wanted)
    for op in history(outputs, after):
        if any([_key(x) in on_path for x in op.inputs]):
            steps.append(op)
            on_path.update(op._keys)
    return steps, on_path


def _cotangents(outputs, grad_outputs, materialize_grads):
    """Yield the ``grad_outputs`` as checked Tensors, with 1 where none was given."""
    if grad_outputs is None:
        grad_outputs = [None] * len(outputs)
    elif not isinstance(grad_outputs, list | tuple):
        grad_outputs = [grad_outputs]
    if len(grad_outputs) != len(outputs):
        raise ValueError(f"grad_outputs has {len(grad_outputs)} entries, outputs {len(outputs)}")
    for i, (y, gy) in enumerate(zip(outputs, grad_outputs)):
        if not y.requires_grad and not materialize_grads:
            raise ValueError(
                f"outputs[{i}] depends on nothing that requires grad (or was computed under no_grad, or is a "
                "derivative that grad gave without create_graph=True)"
            )
        if gy is None:
            if y.size != 1:
                raise ValueError(f"outputs[{i}] has shape {y.shape}: give grad_outputs, or reduce it to one number")
            gy = Tensor(backend.xp(y.data).ones_like(y.data))
        gy = gy if isinstance(gy, Tensor) else _constant(gy, y, f"grad_outputs[{i}]")
        if gy.shape != y.shape:
            raise ValueError(f"grad_outputs[{i}] has shape {gy.shape}, outputs[{i}] has {y.shape}")
        backend.xp(gy.data, y.data)  # raises if they are on different devices
        yield gy


def _add(sums, x, gx):
    """Add gx to the gradient of x so far, in x's dtype."""
    key, gx = _key(x), gx if gx.dtype == x.dtype else gx.astype(x.dtype)
    sums[key] = sums[key] + gx if key in sums else gx


def _gradient_of(x, i, sums, materialize_grads):
    if not x.requires_grad:
        raise ValueError(f"inputs[{i}] (shape {x.shape}) does not require grad: it has no derivative")
    if _key(x) in sums:
        return sums[_key(x)]
    if materialize_grads:
        return Tensor(backend.xp(x.data).zeros_like(x.data))
    raise ValueError(
        f"inputs[{i}] (shape {x.shape}) is not part of the outputs' computation: it has no derivative "
        "(materialize_grads=True gives zeros)"
    )
