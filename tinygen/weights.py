"""The trained models that ship with tinygen, and the files they are in.

A file is NumPy's npz: every parameter by its name, in half precision, and ``about``, a JSON text: the class of the
model, the settings it is built with, and how it was trained. Nothing is unpickled.
"""

import json
import os
from pathlib import Path

import numpy as np

from tinygen import models
from tinygen.nn import Module

FOLDER = Path(__file__).parent / "assets" / "weights"


def pretrained(name: str) -> Module:
    """The trained model of that name, ``"gated-pixelcnn"`` for instance, in float32 on the host.

    benchmarks/RESULTS.md says how each was trained and how good it is. Raises ValueError for an unknown name.
    """
    names = sorted(path.stem for path in FOLDER.glob("*.npz"))
    if name not in names:
        raise ValueError(f"pretrained: got {name!r}, needs one of {', '.join(names)}")
    return load(FOLDER / f"{name}.npz")[0]


def load(path) -> tuple[Module, dict]:
    """The model in a file of ``save``, and what the file says about it.

    Raises OSError for a file that cannot be read, ValueError for one that is something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(str(arrays.pop("about")))
        model = getattr(models, about["model"])(**about["settings"], rng=np.random.default_rng(0))
        model.load_state_dict(arrays)
    except OSError:
        raise
    except Exception as error:  # a damaged file may fail anywhere in zipfile, numpy or json
        raise ValueError(f"{path}: damaged, or no model that was saved here ({error})") from error
    return model, about


def save(path, model: Module, about: dict) -> None:
    """Write the parameters and what is said about them: at any moment the file is whole, the old one or the new one.

    ``about``: ``"settings"``, the arguments the model was built with, without ``rng``, and whatever else JSON can hold.
    Raises ValueError for parameters that half precision cannot hold or that are not of these settings.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {**about, "model": type(model).__name__}
    with np.errstate(over="ignore"):
        arrays = {name: value.astype(np.float16) for name, value in model.state_dict().items()}
    if too_large := [name for name, value in arrays.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{path}: {', '.join(too_large)} do not fit into half precision, or are not finite")
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)
        load(temporary)  # raises where settings and parameters are not of one model
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
