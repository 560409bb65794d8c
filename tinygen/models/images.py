"""What all models ask of their images, and the unit that makes likelihoods of different images comparable."""

import math

import numpy as np

from tinygen.backend import xp
from tinygen.tensor import Tensor


def check_shape(image_shape) -> tuple[int, int, int]:
    """(C, H, W) as a tuple. Raises ValueError unless these are three numbers of at least 1."""
    shape = tuple(image_shape) if isinstance(image_shape, tuple | list) else ()
    if len(shape) != 3 or not all(isinstance(n, int | np.integer) and n > 0 for n in shape):
        raise ValueError(f"image_shape: got {image_shape!r}, needs (channels, height, width), each at least 1")
    return shape


def as_array(x):
    """The array of a Tensor, an array of either kind, or nested lists."""
    x = x.data if isinstance(x, Tensor) else x
    return x if hasattr(x, "dtype") else np.asarray(x)


def check_images(x, image_shape, levels: int | None = None) -> Tensor:
    """A batch x of images (N, C, H, W) as a Tensor; x itself where it is one, so that gradients pass.

    With ``levels`` its values must be whole numbers 0 .. levels - 1. Values are looked at on the host only: on a
    device that would make every step wait. Raises ValueError for another shape, an empty batch, or other values.
    """
    tensor = x if isinstance(x, Tensor) else Tensor(_real(as_array(x)))
    x = tensor.data
    if x.ndim != 4 or x.shape[1:] != image_shape:
        raise ValueError(f"images: got shape {x.shape}, needs (N, {', '.join(map(str, image_shape))})")
    if x.shape[0] == 0:
        raise ValueError("images: the batch is empty")
    if xp(x) is np:
        low, high = x.min(), x.max()
        if not np.isfinite(low + high * 1.0):
            raise ValueError("images: some values are not finite")
        if levels is not None and (low < 0 or high > levels - 1 or (x.dtype.kind == "f" and (x != np.floor(x)).any())):
            hint = "; tinygen.data has functions that binarize" if levels == 2 else ""
            raise ValueError(f"images: values from {low} to {high}, needs whole numbers 0 .. {levels - 1}{hint}")
    return tensor


def _real(x):
    if x.dtype.kind not in "fiub":
        raise ValueError(f"images: got dtype {x.dtype}, needs real numbers")
    return x


def bits_per_dim(nats, image_shape):
    """nats per image -> bits per dimension (colour value of a pixel): nats / (C H W ln 2)."""
    return nats / (math.prod(image_shape) * math.log(2))
