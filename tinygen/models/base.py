"""The interface of all models: ``fit``, ``evaluate``, the tables and the demos use nothing else.

    loss(x, rng, labels)      what training minimizes, the mean over the images x; all of its noise is drawn from rng
    score(x, rng, labels)     what is reported, for each image and in ``unit``: lower is better. It uses no dropout
    log_prob(x, labels)       log p(x) of each image in nats, if the density is tractable
    bound(x, rng, labels)     the terms of a lower bound on log p(x), if it is not
    sample(n, rng, labels)    n draws of x
    initialize(x, rng)        sets what depends on the first minibatch, such as scales, in models that need it

Here x is a batch of images (N, C, H, W), an array or a Tensor. ``labels`` (N,) are for models with ``classes``; other
models take none. Training and evaluation differ in the function that is called, not in a mode of the model.
"""

import numpy as np

from tinygen.nn import Module
from tinygen.tensor import Tensor


class Model(Module):
    """A model of images of shape ``image_shape`` (C, H, W). A subclass has ``log_prob``, or defines ``score``."""

    image_shape: tuple[int, int, int]
    unit = "nats per image"  # of loss and score
    classes = 0  # the number of classes; 0 for a model without labels

    def loss(self, x, rng: np.random.Generator | None = None, *labels) -> Tensor:
        """The mean score; a model that trains with dropout, or with other weights of its terms, overrides it."""
        return self.score(x, rng, *labels).mean()

    def score(self, x, rng: np.random.Generator | None = None, *labels) -> Tensor:
        """(N, C, H, W) -> (N,): -log p(x) in nats, or -log p(x | labels), which need no ``rng``."""
        return -self.log_prob(x, *labels)
