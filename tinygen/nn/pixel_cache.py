"""What sampling keeps of earlier pixels, so that one pixel costs one pixel's work.

Sampling draws H * W pixels one after the other; running the network on the whole image for each repeats almost all of
its work H * W times. So a layer has two forms, side by side in its file: ``forward(x)`` on whole images, and
``forward(x, at=cache)`` at the pixel where the cache is. For the second ``one_pixel(cache)``, called once, makes what
is to be kept, and returns the function from the layer's input at a pixel to its output there, both arrays.

At one pixel, activations are *columns* (channels, N) with the images last. Columns of neighbouring pixels are
contiguous, (position, channels, N): reshaped, without a copy, they are the right factor of one matrix product for all
taps in a row of the kernel.
"""

from tinygen.backend import xp
from tinygen.tensor import Tensor


class PixelCache:
    """For n images: the pixel (``row``, ``column``) that is drawn, and what each layer keeps.

    Pixels come in raster order. One may be evaluated several times, for R, G and B.
    """

    def __init__(self, n: int, height: int, width: int, like):
        self.n, self.height, self.width = n, height, width
        self.like = like  # an array of the dtype and on the device wanted
        self.row = self.column = 0
        self.layers = {}  # what ``one_pixel`` returned for each
        self.readers = []  # the convolutions whose input is the image itself

    def __call__(self, layer, x: Tensor, *labels) -> Tensor:
        """The layer's output at this pixel. ``labels``: for a layer that takes them; always the same ones."""
        if layer not in self.layers:
            self.layers[layer] = layer.one_pixel(self, *labels)
        return Tensor(self.layers[layer](x.data))

    def store(self, values) -> None:
        """The pixel's final values (C, N), which the layers that read the image see from the next pixel on.

        Only these: nothing else that was kept at this pixel depends on its last colour.
        """
        for reader in self.readers:
            reader.store(values, self.row, self.column)

    def zeros(self, *shape):
        return xp(self.like).zeros((*shape, self.n), self.like.dtype)
