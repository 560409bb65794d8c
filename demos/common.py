"""What all demos share: options from one config, checked before any work, trained models, and saving the picture."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tinygen import data
from tinygen.backend import to_device
from tinygen.factors import sprites
from tinygen.models import RECIPES
from tinygen.nn import Module
from tinygen.optim import cosine
from tinygen.parallel import first_rank
from tinygen.training import fit
from tinygen.weights import FOLDER, load

TRAIN = {
    "train": (
        0,
        "train the models for this many steps (without a number: 500) instead of loading those that ship",
        0,
        10**6,
    )
}
COMMON = {
    "seed": (0, "seed of all random numbers"),
    "device": ("cpu", "where to compute: cpu or cuda"),
    "out": ("out", "folder for the picture"),
}


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Prints docstrings unchanged and options with their defaults."""


def options(doc: str, config: dict) -> argparse.Namespace:
    """Read the command line. ``config`` maps each option's name to its default, its meaning and, unless any positive
    number will do, its smallest and largest value.

    Exits with one sentence if a value is invalid, a device is missing, or a picture could not be written.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=Formatter)
    for name, (default, meaning, *_) in {**config, **COMMON}.items():
        how = {"type": type(default), "default": default}
        if name in TRAIN:
            how |= {"nargs": "?", "const": 500}
        parser.add_argument(f"--{name}", help=meaning, **how)
    given = parser.parse_args()
    for name, (_, _, *limits) in config.items():
        value = getattr(given, name)
        if limits and not limits[0] <= value <= limits[1]:
            parser.error(f"--{name}: got {value}, needs a number from {limits[0]} to {limits[1]}")
        if not limits and not 0 < value < float("inf"):
            parser.error(f"--{name}: got {value}, needs a positive number")
    if given.seed < 0:
        parser.error(f"--seed: got {given.seed}, needs a number that is not negative")
    try:
        to_device(np.zeros(1), given.device)
        Path(given.out).mkdir(parents=True, exist_ok=True)
        if not os.access(given.out, os.W_OK):
            raise OSError("it cannot be written to")
    except OSError as error:
        parser.error(f"--out: {given.out} is no folder for the picture ({error})")
    except (RuntimeError, ValueError) as error:  # CuPy or the GPU is missing, as the message says
        parser.error(str(error))
    if not first_rank():  # under MPI only one process prints
        sys.stdout = open(os.devnull, "w")
    return given


def trained(name: str, config: argparse.Namespace) -> Module:
    """The model that ships under this name; with ``--train``, one of its recipe, trained now on 4,500 digits, or on the
    sprites where the recipe says so.

    Exits with one sentence if its weights are missing.
    """
    if not config.train:
        path = FOLDER / f"{name}.npz"
        if not path.exists():
            raise SystemExit(f"{path} is missing; --train 2000 trains such a model instead, for 2000 steps")
        return load(path)[0].to(config.device)
    recipe, rng, digits = RECIPES[name], np.random.default_rng(config.seed), data.digits()
    of_sprites = recipe.protocol == "sprites"
    images, what = (sprites().images, "sprites") if of_sprites else (digits.train_images, "digits")
    images = images / np.float32(255) if recipe.protocol == "grey" else images
    print(f"training {name} anew: {config.train} steps on {len(images):,} {what}", flush=True)
    model = recipe.model(**recipe.settings, rng=rng).to(config.device)
    fit(
        model,
        images,
        steps=config.train,
        optimizer=recipe.optimizer(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, **recipe.options),
        rng=rng,
        labels=digits.train_labels if getattr(model, "classes", 0) else None,
        batch_size=recipe.batch_size,
        prepare=None if recipe.protocol in ("8-bit", "grey", "sprites") else data.binarize_dynamic,
        schedule=cosine,
        averaging=0.99,
    )
    return model


def save(figure: Figure, out: str, name: str) -> None:
    """Write the picture ``name``.png and say where it is."""
    path = Path(out) / f"{name}.png"
    if first_rank():
        figure.savefig(path, dpi=110)
    print(f"picture: {path.resolve()}")


def run(main) -> None:
    """Call ``main``; Ctrl-C ends it with a message instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt as interruption:  # fit's message says what was saved
        raise SystemExit(str(interruption) or "interrupted") from None
