"""Module: something with parameters. A layer owns parameters; a model owns layers."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from tinygen import backend, ops
from tinygen.tensor import Tensor


class Parameter(Tensor):
    """A leaf Tensor that is learned."""

    __slots__ = ()

    def __init__(self, data):
        super().__init__(data, requires_grad=True)


class Module:
    """Holds parameters and other modules as attributes, also inside lists, tuples and dicts.

    A subclass assigns them in ``__init__`` and defines ``forward``; the order of assignment is the order everywhere.
    """

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def children(self) -> Iterator[tuple[str, "Module | Parameter"]]:
        """Its own modules and parameters with their names, in definition order."""
        yield from _members(vars(self).items(), "")

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters below, as ``("blocks.0.conv.weight", parameter)``; a shared one only once."""
        seen = set()
        for name, parameter in self._walk(""):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def _walk(self, prefix):
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child._walk(f"{prefix}{name}.")
            else:
                yield prefix + name, child

    def parameters(self) -> list[Parameter]:
        """All parameters below, in definition order."""
        return [parameter for _, parameter in self.named_parameters()]

    def size(self) -> int:
        """The number of learned numbers."""
        return sum(p.size for p in self.parameters())

    @property
    def device(self) -> str:
        """Where the parameters are: ``"cpu"`` or ``"cuda"``."""
        return next(self.named_parameters())[1].device

    @property
    def dtype(self) -> np.dtype:
        """Of the parameters: what the module computes in."""
        return next(self.named_parameters())[1].dtype

    def to(self, device: str) -> "Module":
        """Move the parameters (not their gradients) to ``"cpu"`` or ``"cuda"``; returns the module itself."""
        for _, child in self.children():
            if isinstance(child, Module):
                child.to(device)
            else:
                child.data, child.grad = backend.to_device(child.data, device), None
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter on the host, by name."""
        return {name: np.array(p.numpy()) for name, p in self.named_parameters()}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Take over the values of ``state_dict()``, on the device and in the dtype that the module has now.

        Raises ValueError, and changes nothing, where entries are missing, unexpected or of another shape.
        """
        own = dict(self.named_parameters())
        problems = [f"missing {name} {p.shape}" for name, p in own.items() if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} has shape {np.shape(state[name])}, needs {p.shape}"
            for name, p in own.items()
            if name in state and np.shape(state[name]) != p.shape
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
        lines = [f"{type(self).__name__}({self.describe()})  {self.size():,}"]
        texts = {n: repr(c) if isinstance(c, Module) else f"{c.shape}  {c.size:,}" for n, c in self.children()}
        # numbered ones that look the same are shown once
        for (text, _), same in groupby(texts, lambda name: (texts[name], name.split(".")[0])):
            first, *others = same
            lines.append(f"{first}{f' to {others[-1]}' if others else ''}: {text}")
        return "\n".join(lines).replace("\n", "\n  ")


def _members(items, prefix):
    for name, value in items:
        if isinstance(value, Module | Parameter):
            yield f"{prefix}{name}", value
        elif isinstance(value, list | tuple):
            yield from _members(enumerate(value), f"{prefix}{name}.")
        elif isinstance(value, dict):
            yield from _members(value.items(), f"{prefix}{name}.")


class Dropout(Module):
    """Zeroes each value with probability ``p`` where an ``rng`` is given; without one (evaluation) does nothing."""

    def __init__(self, p: float):
        if not 0 <= p < 1:
            raise ValueError(f"Dropout: p is {p}, needs 0 <= p < 1")
        self.p = float(p)

    def forward(self, x, rng: np.random.Generator | None = None):
        return ops.dropout(x, self.p, rng) if rng is not None and self.p else x

    def describe(self):
        return f"p={self.p}"


class Sequential(Module):
    """One after the other: modules, or plain functions of one Tensor such as ``ops.relu``."""

    def __init__(self, *steps):
        self.steps = steps

    def forward(self, x, rng: np.random.Generator | None = None):
        """``rng`` goes to the Dropout layers: without one (evaluation) they do nothing."""
        for step in self.steps:
            x = step(x, rng) if isinstance(step, Dropout | Sequential) else step(x)
        return x
