"""The trained models that ship with tinygen, and the files that hold them.

Each file is an npz with every parameter and buffer by its name, and ``about``, a JSON text with the class of the model,
the settings it is built with, and how it was trained. Nothing is unpickled.
"""

import json
from pathlib import Path

import numpy as np

from tinygen import check, models
from tinygen.files import read_arrays, written
from tinygen.nn import Module

FOLDER = Path(__file__).parent / "assets" / "weights"


def pretrained(name: str) -> Module:
    """The trained model with this name, such as ``"gated-pixelcnn"``, in float32 on the host.

    benchmarks/RESULTS.md says how each was trained and how good it is. Raises ValueError for an unknown name.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.npz"))
    if name not in names:
        raise ValueError(f"pretrained: got {name!r}, needs one of {', '.join(names)}")
    return load(FOLDER / f"{name}.npz")[0]


def load(path: str | Path, model: Module | None = None) -> tuple[Module, dict]:
    """The model in a file written by ``save``, and the ``about`` that was saved with it.

    ``model``: a model of your own class, into which the values are loaded. Models of ``tinygen.models`` are built from
    the settings in the file. Raises OSError for a file that cannot be read, ValueError for one without such a model.
    """
    if model is not None:
        _check(model)
    arrays = read_arrays(path)
    try:
        about = json.loads(str(arrays.pop("about")))
        name, known = about["model"], about["model"] in models.__all__
        if model is None and known:
            numbers = _Limited(sum(a.nbytes for a in arrays.values()) // 2)  # two bytes for each half-precision number
            model = getattr(models, name)(**about["settings"], rng=numbers)
    except Exception as error:  # any error of json or of the model's constructor
        raise ValueError(f"{path}: damaged, or no model that was saved here ({error})") from error
    if model is None:
        raise ValueError(f"{path}: is of the class {name}, not one of tinygen.models: build it and pass it as model")
    try:
        model.load_state_dict(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: is of another model ({error})") from error
    return model, about


class _Limited(np.random.Generator):
    """A generator that raises ValueError when more than ``numbers`` are drawn, before memory for them is allocated."""

    def __init__(self, numbers):
        super().__init__(np.random.PCG64(0))
        self.left = numbers

    def standard_normal(self, size, dtype=np.float64):
        numbers = int(np.prod([int(n) for n in size], dtype=object))
        check.room(self, numbers)
        self.left -= numbers
        return super().standard_normal(size, dtype)


def _check(model):
    if not isinstance(model, Module):
        raise ValueError(f"model: got {model!r}, needs a Module")


def save(path: str | Path, model: Module, about: dict | None = None, half: bool = True) -> None:
    """Write parameters, buffers and ``about``; if writing fails, an existing file stays as it was.

    ``about``: anything that JSON can hold. For a model of ``tinygen.models`` it needs ``"settings"``, the arguments of
    the constructor without ``rng``. ``half``: store half precision; otherwise values are stored exactly.
    Raises ValueError for values that half precision cannot hold or that do not fit the settings.
    """
    _check(model)
    about, arrays = {**(about or {}), "model": type(model).__name__}, model.state_dict()
    ours = type(model) in vars(models).values()
    if ours and "settings" not in about:
        raise ValueError(
            f"about: needs 'settings', the arguments that the {about['model']} was built with, without rng"
        )
    if half:
        with np.errstate(over="ignore"):
            arrays = {name: a.astype(np.float16) if a.dtype.kind == "f" else a for name, a in arrays.items()}
        if too_large := [name for name, a in arrays.items() if not np.isfinite(a).all()]:
            raise ValueError(f"{path}: {', '.join(too_large)} do not fit into half precision, or are not finite")
    with written(path) as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
        file.flush()
        if ours:
            load(file.name)  # raises if settings and parameters do not fit
