"""The interface of all models. ``fit``, ``evaluate`` and the tables know a model by what it has of this.

    loss(x, rng, labels)      what training minimizes, the mean over the images x; all of its noise is drawn from rng
    score(x, rng, labels)     what is reported, for each image and in ``unit``: lower is better. It uses no dropout

    log_prob(x, labels)       log p(x) of each image in nats, if the density is tractable
    bound(x, rng, labels)     if it is not, a lower bound on it with one draw of noise: a named tuple of its terms,
                              whose ``total`` is the bound
    log_likelihood(x, rng, samples)   a tighter bound, from several draws
    sample(n, rng, labels)    n draws of x
    complete(x, rng, mask)    the images with all values drawn anew, or their means, but those where the mask holds
    encode(x), decode(z)      from images to codes and back; reconstruct(x) is both
    initialize(x, rng, labels)  sets what depends on the first minibatch, such as scales
    maximize(images, rounds)  trains without gradients

A model has ``loss``, and ``score`` unless no number of one image says how good it is (a GAN); of the others it has what
it can do. x is a batch of images (N, C, H, W), an array or a Tensor.
``labels`` (N,) are for models with ``classes``; other models take none. Training and evaluation differ in the function
that is called, not in a mode of the model.
"""

import numpy as np

from tinygen.nn import Module
from tinygen.tensor import Tensor


class Model(Module):
    """A model of images of shape ``image_shape`` (C, H, W). A subclass has ``bound`` or ``log_prob``, or
    defines ``score``."""

    image_shape: tuple[int, int, int]
    unit = "nats per image"  # of score
    classes = 0  # the number of classes; 0 for a model without labels
    together = 1  # images that ``loss`` needs at once, since it compares them with each other; otherwise 1

    def loss(self, x, rng: np.random.Generator | None = None, labels=None) -> Tensor:
        """The mean score; a model that trains with dropout, or with other weights of its terms, overrides it."""
        return self.score(x, rng, labels).mean()

    def score(self, x, rng: np.random.Generator | None = None, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): -log p(x) in nats, or -log p(x | labels), or minus the bound."""
        if hasattr(self, "bound"):
            return -self.bound(x, rng, labels).total
        return -self.log_prob(x, labels)

    def describe(self):
        return f"image_shape={self.image_shape}"
