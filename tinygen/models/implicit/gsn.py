"""Generative stochastic networks (Bengio et al. 2014, arXiv 1306.1091).

Corrupting an image, x~ ~ C(x~|x), and drawing a clean one from what a network makes of it, x' ~ P(x|x~), is a step of a
Markov chain. If P is the true posterior of C, P(x|x~) proportional to p(x) C(x~|x), then the chain leaves the
distribution of the images p(x) as it is: (x', x~) then has the same joint distribution as (x, x~). So a denoising
autoencoder, which learns nothing but P(x|x~), is a model that can be sampled.
"""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.distributions import Bernoulli
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.models.recipe import Recipe
from tinygen.nn import Linear
from tinygen.optim import Adam
from tinygen.tensor import Tensor, no_grad

STEPS = 100  # of the chains that sample and complete


class GSN(Model):
    """A fully connected denoising autoencoder with ReLU, and the Markov chain that it makes.

    ``image_shape`` (C, H, W); images are real numbers in [0, 1], the probabilities of binary pixels. ``hidden``: units
    of its layers; ``noise``: the probability that the corruption C replaces a pixel by 0 or 1, both equally probable;
    ``walkback``: how many steps of the chain training takes from an image. Raises ValueError for invalid numbers.

    Deviations from the paper's network: its noise is in the pixels alone and not in the hidden units too, one pass
    through the network takes the place of an unrolled deep one with tied weights, and ReLU replaces tanh.
    """

    unit = "nats per image, given its corruption"

    def __init__(self, image_shape=(1, 28, 28), hidden=(480, 480), noise=0.4, walkback=4, *, rng: np.random.Generator):
        self.image_shape, pixels = check_shape(image_shape), math.prod(image_shape)
        self.noise, self.walkback = check.number("noise", noise, "(0, 1)"), check.count("walkback", walkback)
        hidden = check.counts("hidden", hidden)
        self.layers = [Linear(n, m, rng=rng, gain=2.0) for n, m in zip((pixels, *hidden), hidden)]
        self.out = Linear(hidden[-1], pixels, rng=rng, gain=0.0)

    def describe(self):
        return f"image_shape={self.image_shape}, noise={self.noise}, walkback={self.walkback}"

    def corrupt(self, x, rng: np.random.Generator) -> Tensor:
        """x~ ~ C(x~|x), salt and pepper: (N, C, H, W), array or Tensor -> the same shape."""
        x = self._checked(x)
        u = to_device(check.generator(rng).random(x.shape), self.device)
        # 0 where u < noise / 2, 1 where noise / 2 <= u < noise, else as it was
        salt = Tensor((u >= self.noise / 2).astype(self.dtype))
        return ops.where(u < self.noise, salt, x)

    def posterior(self, corrupted) -> Bernoulli:
        """P(x|x~): (N, C, H, W) -> independent pixels, (N, C, H, W)."""
        h = self._checked(corrupted)
        h = 2 * h.reshape(h.shape[0], -1) - 1
        for layer in self.layers:
            h = ops.relu(layer(h))
        return Bernoulli(self.out(h).reshape(-1, *self.image_shape))

    def score(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): the mean of -log P(x|x~) in nats, over the first ``walkback`` steps of a chain from x.

        Wherever the chain has gone, the network learns to lead it back to x; so images that the chain could stray to
        become improbable. The draws on the way are constants. It is no bound on -log p(x).
        Source: Bengio et al. 2013 (arXiv 1305.6663), the walkback algorithm.
        """
        check.no_labels(labels)
        x = state = self._checked(x)
        total = 0.0
        for step in range(self.walkback):
            p = self.posterior(self.corrupt(state, rng))
            # -log P(x|x~), with x_i as the probability of a white pixel
            total = total + ops.bce_with_logits(p.logits, x).sum((1, 2, 3))
            if step + 1 < self.walkback:
                state = Tensor(p.sample(rng))
        return total / self.walkback

    def chain(self, x, rng: np.random.Generator, steps: int = STEPS, mask=None) -> Iterator:
        """Yield x~, x' ~ P(x|x~) and the mean of P(x|x~) after each of ``steps`` steps from x, arrays (N, C, H, W).

        With ``mask``, booleans that broadcast to x, the values of x where it holds return after each step.
        Source: Bengio et al. 2014, figure 1.
        """
        x = given = self._checked(x).data
        keep = check.mask(False if mask is None else mask, x.shape, self.device)
        for _ in range(check.count("steps", steps)):
            with no_grad():
                corrupted = self.corrupt(x, rng)
                p = self.posterior(corrupted)
                x, mean = (xp(given).where(keep, given, a) for a in (p.sample(rng), p.mean.data))
            yield corrupted.data, x, mean

    def sample(self, n: int, rng: np.random.Generator, labels=None, steps: int = STEPS):
        """(n, C, H, W) array of 0 and 1 on the model's device: where ``steps`` steps of n chains lead from noise."""
        check.no_labels(labels)
        return self._end(self._noise(n, rng), rng, steps)[1]

    def sample_means(self, n: int, rng: np.random.Generator, steps: int = STEPS):
        """Like ``sample``, but with the mean of the last P(x|x~) instead of a draw, as the paper shows and judges."""
        return self._end(self._noise(n, rng), rng, steps)[2]

    def complete(self, x, rng: np.random.Generator, mask, steps: int = STEPS):
        """(N, C, H, W): the values of x where ``mask`` is True, elsewhere means of P(x|x~) after ``steps`` steps of a
        chain in which these values are kept. Source: Bengio et al. 2014, on missing inputs.
        """
        given = self._checked(x).data
        start = xp(given).where(check.mask(mask, given.shape, self.device), given, self._noise(len(given), rng))
        return self._end(start, rng, steps, mask)[2]

    def _end(self, start, rng, steps, mask=None):
        """The last of what ``chain`` yields."""
        (last,) = deque(self.chain(start, rng, steps, mask), maxlen=1)  # the others are not kept
        return last

    def _noise(self, n, rng):
        """n images of independent pixels, 0 or 1 with equal probability."""
        bits = check.generator(rng).integers(0, 2, (check.count("n", n), *self.image_shape))
        return to_device(bits.astype(self.dtype), self.device)

    def _checked(self, x):
        """x as a Tensor in the parameters' dtype, after checking it."""
        return check_images(x, self.image_shape, grey=True, unit=True).astype(self.dtype)


RECIPES = {
    "gsn": Recipe(
        GSN,
        {},
        protocol="grey",
        steps=(20_000,),
        optimizer=Adam,
        lr=1e-3,
        weight_decay=0.0,
        batch_size=64,
        published="Parzen 214",  # Bengio et al. 2014, on means of P(x|x~)
    )
}
