"""What every model promises. ``fit``, ``evaluate``, the tables and the demos know of a model only this.

    loss(x, rng, labels)      what training minimizes, the mean over the images x; all of its noise is drawn from rng
    score(x, rng, labels)     what is reported, for each image and in ``unit``: lower is better. Nothing is dropped
    log_prob(x, labels)       log p(x) of each image in nats, where the density is tractable
    bound(x, rng, labels)     the parts of a lower bound on log p(x) where it is not
    sample(n, rng, labels)    n draws of x
    initialize(x, rng)        sets what follows from the first minibatch, such as scales, for models that need it

Here x is a batch of images (N, C, H, W), an array or a Tensor; ``labels`` (N,) belong to a model with ``classes``, and
other models go without. Training and evaluation differ by the function that is called, not by a mode of the model.
"""

import numpy as np

from tinygen.nn import Module
from tinygen.tensor import Tensor


class Model(Module):
    """A model of images of shape ``image_shape`` (C, H, W). A subclass has ``log_prob``, or defines ``score``."""

    image_shape: tuple[int, int, int]
    unit = "nats per image"  # of loss and score
    classes = 0  # how many there are to label images with

    def loss(self, x, rng: np.random.Generator | None = None, *labels) -> Tensor:
        """The mean score, unless a model learns with other noise or weights than it is judged by."""
        return self.score(x, rng, *labels).mean()

    def score(self, x, rng: np.random.Generator | None = None, *labels) -> Tensor:
        """(N, C, H, W) -> (N,): -log p(x) in nats, or -log p(x | labels), which need no ``rng``."""
        return -self.log_prob(x, *labels)
