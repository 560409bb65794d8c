"""What all demos have: options from one config, checked before any work, and a place for the picture."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tinygen.backend import to_device
from tinygen.parallel import first_rank

COMMON = {
    "seed": (0, "of all random numbers"),
    "device": ("cpu", "where to compute: cpu or cuda"),
    "out": ("out", "folder for the picture"),
}


def options(doc: str, config: dict) -> argparse.Namespace:
    """The command line: ``config`` maps each option's name to its default, what it means, and, where a number has to be
    more than positive, the smallest and the largest.

    Ends with one sentence where a value makes no sense, a device is missing, or a picture could not be written.
    """
    parser = argparse.ArgumentParser(
        description=doc.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, (default, meaning, *_) in {**config, **COMMON}.items():
        how = {"action": "store_true"} if isinstance(default, bool) else {"type": type(default), "default": default}
        parser.add_argument(f"--{name}", help=meaning, **how)
    given = parser.parse_args()
    for name, (default, _, *limits) in config.items():
        value = getattr(given, name)
        if limits and not limits[0] <= value <= limits[1]:
            parser.error(f"--{name}: got {value}, needs a number from {limits[0]} to {limits[1]}")
        if not limits and not isinstance(default, bool | str) and not 0 < value < float("inf"):
            parser.error(f"--{name}: got {value}, needs a positive number")
    if given.seed < 0:
        parser.error(f"--seed: got {given.seed}, needs a number that is not negative")
    try:
        to_device(np.zeros(1), given.device)
        Path(given.out).mkdir(parents=True, exist_ok=True)
        if not os.access(given.out, os.W_OK):
            raise OSError(f"--out: {given.out} cannot be written to")
    except (RuntimeError, ValueError, OSError) as error:  # no CuPy, no GPU, no such folder: the sentence says it
        parser.error(str(error))
    if not first_rank():  # under MPI one process tells what happens
        sys.stdout = open(os.devnull, "w")
    return given


def save(figure: Figure, out: str, name: str) -> None:
    """Write the picture ``name``.png and say where it is."""
    path = Path(out) / f"{name}.png"
    if first_rank():
        figure.savefig(path, dpi=110)
    print(f"picture: {path.resolve()}")


def run(main) -> None:
    """Call ``main``; Ctrl-C ends it with a word instead of a traceback."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted") from None
