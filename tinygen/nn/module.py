"""Module: something with parameters. A layer owns parameters and perhaps buffers; a model owns layers."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from tinygen import backend, check, ops
from tinygen.files import read_arrays
from tinygen.tensor import Tensor, as_flag


class Parameter(Tensor):
    """A leaf Tensor that is learned."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data, requires_grad=True)

    def _in_place(self, other):
        raise TypeError("a Parameter is not changed in place: write p.data -= step, with an array as step")

    __iadd__ = __isub__ = __imul__ = __itruediv__ = _in_place


class Buffer(Tensor):
    """A leaf Tensor that is saved and moved with its module, but not learned, such as a running average."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data)


class RowBuffer(Buffer):
    """A Buffer with a row for each image of a minibatch, such as a Markov chain's state.

    In ``fit`` it is cut into shards like the images: ``loss`` sees, and may change, only the rows of its own images.
    Raises ValueError unless it has floats, since ``fit`` exchanges no other buffers between processes.
    """

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data)
        if self.dtype.kind != "f":
            raise ValueError(f"RowBuffer: has dtype {self.dtype}, needs floats")


class Module:
    """Holds parameters, buffers and other modules as attributes, also inside lists, tuples and dicts.

    A subclass assigns them in ``__init__`` and defines ``forward``; parameters keep the order of assignment.
    To change a buffer in training, assign a new array to its ``data``. Other Tensors are neither saved nor moved.
    """

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def children(self) -> Iterator[tuple[str, "Module | Tensor"]]:
        """Its direct children (modules, parameters and buffers) with their names, in definition order."""
        yield from _members(vars(self).items(), "")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters, of submodules too, as ``("blocks.0.conv.weight", parameter)``; a shared one only once."""
        return ((name, tensor) for name, tensor in self._named_tensors() if isinstance(tensor, Parameter))

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers, of submodules too, named in the same way."""
        return ((name, tensor) for name, tensor in self._named_tensors() if not isinstance(tensor, Parameter))

    def _named_tensors(self):
        seen, names = set(), set()
        for name, tensor in self._walk(""):
            if id(tensor) not in seen:
                if name in names:
                    raise ValueError(f"{type(self).__name__}: two of its parameters or buffers have the name {name}")
                seen.add(id(tensor))
                names.add(name)
                yield name, tensor

    def _walk(self, prefix):
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child._walk(f"{prefix}{name}.")
            else:
                yield prefix + name, child

    def named_modules(self, name: str = "") -> Iterator[tuple[str, "Module"]]:
        """The module itself, as ``("", self)``, and all submodules, as ``("blocks.0.conv", module)``."""
        yield name, self
        for below, child in self.children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{name}.{below}" if name else below)

    def parameters(self) -> list[Parameter]:
        """All parameters, of submodules too, in definition order."""
        return [parameter for _, parameter in self.named_parameters()]

    @property
    def requires_grad(self) -> bool:
        """Whether any parameter requires grad; assigning False freezes all parameters, True unfreezes them."""
        return any(p.requires_grad for p in self.parameters())

    @requires_grad.setter
    def requires_grad(self, value: bool):
        for p in self.parameters():
            p.requires_grad = as_flag(value, "requires_grad")

    def num_parameters(self) -> int:
        """The number of entries in all parameters."""
        return sum(p.size for p in self.parameters())

    @property
    def device(self) -> str:
        """The device of the parameters: ``"cpu"`` or ``"cuda"``."""
        return self._first().device

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the parameters, in which the module computes."""
        return self._first().dtype

    def _first(self) -> Parameter:
        for _, parameter in self.named_parameters():
            return parameter
        raise ValueError(f"{type(self).__name__} has no parameters, so neither device nor dtype")

    def to(self, device: str) -> "Module":
        """Move parameters (not their gradients) and buffers to ``"cpu"`` or ``"cuda"``; returns the module itself."""
        for _, child in self.children():
            if isinstance(child, Module):
                child.to(device)
            else:
                child.data, child.grad = backend.to_device(child.data, device), None
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter and buffer on the host, by name."""
        return {name: np.array(tensor.numpy()) for name, tensor in self._named_tensors()}

    def load_state_dict(self, state: dict[str, np.ndarray] | str | Path) -> None:
        """Copy the values of a ``state_dict()`` into the module, which keeps its device and dtype.

        ``state``: the dict, or the path of a file that ``tinygen.weights.save`` wrote. Raises ValueError, and changes
        nothing, if entries are missing, unexpected, of another shape or not real numbers.
        """
        if isinstance(state, str | Path):
            state = {name: array for name, array in read_arrays(state).items() if name != "about"}
        if not isinstance(state, dict):
            raise ValueError(f"load_state_dict: got {type(state).__name__}, needs a dict of arrays or a file's path")
        own = dict(self._named_tensors())
        problems = [f"missing {name} {p.shape}" for name, p in own.items() if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {np.shape(state[name])}, needs {p.shape}"
            for name, p in own.items()
            if name in state and np.shape(state[name]) != p.shape
        ]
        problems += [
            f"{name} has dtype {np.asarray(value).dtype}, needs real numbers"
            for name, value in state.items()
            if np.asarray(value).dtype.kind not in "fiub"
        ]
        if problems:
            raise ValueError(f"load_state_dict into {type(self).__name__}: " + "; ".join(problems))
        values = {name: backend.to_device(np.array(state[name], p.dtype), p.device) for name, p in own.items()}
        for name, p in own.items():
            p.data = values[name]

    def describe(self) -> str:
        """The settings shown in the repr, such as a kernel size."""
        return ""

    def __repr__(self):
        lines = [f"{type(self).__name__}({self.describe()})  {self.num_parameters():,}"]
        texts = {n: repr(c) if isinstance(c, Module) else _described(c) for n, c in self.children()}
        # Numbered children of equal repr are shown once
        for (text, _), same in groupby(texts, lambda name: (texts[name], name.split(".")[0])):
            first, *others = same
            lines.append(f"{first}{f' to {others[-1]}' if others else ''}: {text}")
        return "\n".join(lines).replace("\n", "\n  ")


def _described(tensor):
    return f"{tensor.shape}  {f'{tensor.size:,}' if isinstance(tensor, Parameter) else 'buffer'}"


def _members(items, prefix):
    for name, value in items:
        if isinstance(value, Module | Parameter | Buffer):
            yield f"{prefix}{name}", value
        elif isinstance(value, list | tuple):
            yield from _members(enumerate(value), f"{prefix}{name}.")
        elif isinstance(value, dict):
            yield from _members(value.items(), f"{prefix}{name}.")


class Dropout(Module):
    """Zeroes each value with probability ``p`` if an ``rng`` is given; without one (in evaluation) it does nothing."""

    def __init__(self, p: float):
        self.p = check.number("Dropout: p", p, "[0, 1)")

    def forward(self, x, rng: np.random.Generator | None = None):
        return ops.dropout(x, self.p, rng) if rng is not None and self.p else x

    def describe(self):
        return f"p={self.p}"
