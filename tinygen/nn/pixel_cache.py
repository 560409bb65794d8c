"""Activations of earlier pixels, kept while sampling, so that each pixel is computed only once.

Sampling draws H * W pixels one after the other; running the network on the whole image for each repeats almost all of
its work H * W times. So a layer has two forms, side by side in its file: ``forward(x)`` on whole images, and
``forward(x, at=cache)`` at the cache's current pixel. For the second form, ``one_pixel(cache)`` is called once: it
allocates what is kept, and returns the function from the layer's input at a pixel to its output there, both arrays.

At one pixel, activations are *columns* (channels, N) with the images last. Columns of neighbouring pixels are
contiguous, (position, channels, N): reshaped without a copy to (positions * channels, N), they are multiplied by all
taps in a row of the kernel in one matrix product.
"""

from tinygen.backend import xp
from tinygen.tensor import Tensor


class PixelCache:
    """The pixel (``row``, ``column``) that is being drawn in n images, and what each layer keeps.

    Pixels come in raster order. A pixel may be evaluated several times, for R, G and B. Where a network sees only rows
    above, all pixels of a row are evaluated together: ``column`` is then None, and a layer's input is (W, channels, N).
    """

    def __init__(self, n: int, height: int, width: int, like):
        self.n, self.height, self.width = n, height, width
        self.like = like  # an array with the dtype and device to use
        self.row = self.column = 0
        self.layers = {}  # layer: the function that its ``one_pixel`` returned
        self.readers = []  # the convolutions whose input is the image itself

    def __call__(self, layer, x: Tensor, *labels) -> Tensor:
        """The layer's output at this pixel, or None. ``labels``: for layers that take them, the same in every call."""
        y = self.function(layer, *labels)(x.data)
        return None if y is None else Tensor(y)

    def function(self, layer, *labels):
        """What the layer's ``one_pixel`` returned when it was first called."""
        if layer not in self.layers:
            self.layers[layer] = layer.one_pixel(self, *labels)
        return self.layers[layer]

    def store(self, values) -> None:
        """Give the pixel's final values (C, N), or a row's (W, C, N), to the layers that read the image.

        Nothing else that was kept at this pixel depends on its last colour.
        """
        for reader in self.readers:
            reader.store(values, self.row, self.column)

    def shrunk(self) -> "PixelCache":
        """A cache for images of half the height and width, rounded up, at the first pixel or row."""
        cache = PixelCache(self.n, -(-self.height // 2), -(-self.width // 2), self.like)
        cache.column = self.column
        return cache

    def zeros(self, *shape):
        """Zeros of shape (..., N)."""
        return xp(self.like).zeros((*shape, self.n), self.like.dtype)
