"""Checks of images that all models make, and bits per dimension, a unit that does not depend on the image size."""

import math

import numpy as np

from tinygen import check
from tinygen.backend import xp
from tinygen.tensor import Tensor, as_array


def check_shape(image_shape) -> tuple[int, int, int]:
    """(C, H, W) as a tuple. Raises ValueError unless they are three whole numbers of at least 1."""
    return check.counts("image_shape", image_shape, "(channels, height, width)", 3)


def check_images(
    x, image_shape=("C", "H", "W"), levels: int | None = None, grey: bool = False, unit: bool = False
) -> Tensor:
    """A batch x of images (N, C, H, W) as a Tensor; x itself if it is one, so that gradients pass.

    With ``levels`` the values must be whole numbers 0 .. levels - 1; with ``grey`` they are real numbers, and integers
    above 1 raise; with ``unit`` they must be in [0, 1]. Values are checked on the host only: on a device, a check would
    make every step wait for the device. Raises ValueError for another shape, an empty batch, or other values, TypeError
    for anything but numbers.
    """
    tensor = check.tensor("images", x, "N", *image_shape)
    x = tensor.data
    if not x.size:
        raise ValueError("images: the batch is empty")
    if levels is not None:
        check.whole("images", x, levels)
    elif xp(x) is np:
        if not np.isfinite(x.min() + x.max() * 1.0):
            raise ValueError("images: some values are not finite")
        if grey and x.dtype.kind in "iu" and x.max() > 1:
            raise ValueError(f"images: {x.dtype} up to {x.max()}, needs real numbers from 0 to 1: divide by 255")
        if unit and not (x.min() >= 0 and x.max() <= 1):
            raise ValueError(f"images: values from {x.min()} to {x.max()}, needs numbers in [0, 1]")
    return tensor


def bits_per_dim(nats, image_shape):
    """nats per image -> bits per dimension (each colour of each pixel is one): nats / (C H W ln 2)."""
    if not isinstance(nats, Tensor):
        nats = as_array(nats, "nats") if hasattr(nats, "dtype") else check.number("nats", nats, "[-inf, inf]")
    return nats / (math.prod(check_shape(image_shape)) * math.log(2))
