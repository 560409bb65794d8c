"""A mixture of Bernoullis: the simplest density of binary images, fitted by expectation-maximization."""

import math

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.models.recipe import Recipe
from tinygen.nn import Parameter
from tinygen.tensor import Tensor, no_grad


class BernoulliMixture(Model):
    """p(x) = sum_k w_k prod_i p_ki^x_i (1 - p_ki)^(1 - x_i): pixels are independent within each of the components.

    ``image_shape`` (C, H, W); ``components``: how many, 1 for independent pixels. At first the weights w are equal and
    the probabilities p near 1/2. ``maximize`` fits them; so could gradients. Raises ValueError for numbers below 1.
    Source: Bishop 2006, section 9.3.3.
    """

    def __init__(self, image_shape=(1, 28, 28), components=500, *, rng: np.random.Generator):
        self.image_shape, components = check_shape(image_shape), check.count("components", components)
        d = math.prod(self.image_shape)
        self.logits = Parameter(0.3 * check.generator(rng).standard_normal((components, d), np.float32))  # of p
        self.log_w = Parameter(np.full(components, -math.log(components), np.float32))  # up to a constant

    def log_prob(self, x, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): log p(x) in nats."""
        check.no_labels(labels)
        return ops.logsumexp(self._joint(x), 1)

    def _joint(self, x):
        """(N, C, H, W) of 0 and 1 -> (N, K): log w_k + log p(x | k)"""
        x = check_images(x, self.image_shape, 2).astype(self.dtype)
        # sum_i x_i log p_i + (1 - x_i) log (1 - p_i) = x . logits - sum_i softplus(logits_i)
        given_k = x.reshape(x.shape[0], -1) @ self.logits.T - ops.softplus(self.logits).sum(1)
        return given_k + ops.log_softmax(self.log_w, 0)

    @no_grad()
    def maximize(self, images, rounds: int, prior: float = 0.05) -> None:
        """So many rounds of expectation-maximization on ``images`` (N, C, H, W).

        ``prior``: how many pixels of 0 and of 1 each component has seen before, so that no probability is 0 or 1.
        """
        x, prior = check_images(images, self.image_shape, 2).data, check.number("prior", prior, "(0, inf)")
        x = x.reshape(len(x), -1)
        for _ in range(check.count("rounds", rounds)):
            n, on = 0, 0  # images and pixels of 1 that each component is responsible for, (K,) and (K, D)
            for start in range(0, len(x), 5000):
                part = x[start : start + 5000].astype(self.dtype)
                r = ops.softmax(self._joint(part.reshape(-1, *self.image_shape)), 1).data  # p(k | x)
                n, on = n + r.sum(0), on + r.T @ part
            m = xp(on)
            self.logits.data = m.log(on + prior) - m.log(n[:, None] - on + prior)
            self.log_w.data = m.log(n + prior)

    @no_grad()
    def sample(self, n: int, rng: np.random.Generator, labels=None):
        """n images (n, C, H, W) of 0 and 1, uint8, on the model's device."""
        check.no_labels(labels)
        n, w = check.count("n", n), ops.softmax(self.log_w, 0).numpy().astype(float)
        k = check.generator(rng).choice(len(w), n, p=w / w.sum())
        p = ops.sigmoid(self.logits[to_device(k, self.device)]).data
        u = to_device(rng.random(p.shape), self.device)
        return (u < p).astype(np.uint8).reshape(n, *self.image_shape)


RECIPES = {
    "bernoulli": Recipe(BernoulliMixture, {"components": 1}, protocol="published", steps=(1,), optimizer=None),
    "bernoulli-mixture": Recipe(
        BernoulliMixture,
        {"components": 500},
        protocol="published",
        steps=(30,),
        optimizer=None,
        published="137.64",  # quoted by Germain et al. 2015
    ),
}
