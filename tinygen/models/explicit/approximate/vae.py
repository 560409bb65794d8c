"""The variational autoencoder (Kingma and Welling 2014).

It maximizes ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)) <= log p(x).
"""

import math
from typing import NamedTuple

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.distributions import Bernoulli, Gaussian
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.models.networks import CHANNELS, Decoder, Encoder
from tinygen.models.recipe import Recipe
from tinygen.nn import init
from tinygen.tensor import Tensor, as_array, no_grad

ENCODED, DECODED = 64, 512  # images encoded and decoded at once in log_likelihood, to bound its memory


class Terms(NamedTuple):
    """The two terms of the evidence lower bound, each (N,) in nats."""

    reconstruction: Tensor  # E_q[log p(x|z)], estimated with one z
    kl: Tensor  # KL(q(z|x) || p(z)), exact

    @property
    def total(self) -> Tensor:
        """(N,): the ELBO, which in expectation is at most log p(x)."""
        return self.reconstruction - self.kl


class VAE(Model):
    """z ~ N(0, I), x ~ p(x|z), and q(z|x) is a diagonal Gaussian. The networks are like the autoencoder's.

    ``image_shape`` (C, H, W), any size; ``latent``: dimensions of z; ``beta``: weight of the KL term in the loss
    (1: the ELBO; Higgins et al. 2017). ``likelihood``: ``"bernoulli"`` for images of 0 and 1, or ``"gaussian"`` for
    real ones, with one learned variance for all pixels. ``channels``: output channels of each convolution; ``blocks``:
    number of residual blocks after each convolution and before each upconvolution.
    Raises ValueError for another likelihood or invalid numbers.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        latent=32,
        beta=1.0,
        likelihood="bernoulli",
        channels=CHANNELS,
        blocks=0,
        *,
        rng: np.random.Generator,
    ):
        check.choice("likelihood", likelihood, "bernoulli", "gaussian")
        self.image_shape, self.beta = check_shape(image_shape), check.number("beta", beta, "[0, inf)")
        self.latent, channels = check.count("latent", latent), check.counts("channels", channels)
        blocks = check.count("blocks", blocks, 0)
        self.encoder = Encoder(self.image_shape, 2 * self.latent, channels, blocks, rng=rng)
        self.decoder = Decoder(self.image_shape, self.latent, channels, blocks, rng=rng)
        self.log_var = init.zeros(1) if likelihood == "gaussian" else None

    def describe(self):
        return f"image_shape={self.image_shape}, latent={self.latent}, beta={self.beta}"

    def encode(self, x) -> Gaussian:
        """q(z|x): (N, C, H, W) -> Gaussian over (N, latent)."""
        y = self.encoder(self._checked(x))  # (N, 2 latent): mean and log-variance
        return Gaussian(y[:, : self.latent], y[:, self.latent :])

    def likelihood(self, z) -> Bernoulli | Gaussian:
        """p(x|z): (N, latent) -> distribution over (N, C, H, W)."""
        y = self.decoder(z)  # (N, C, H, W): logits or means
        return Bernoulli(y) if self.log_var is None else Gaussian(y, self.log_var)

    def decode(self, z) -> Tensor:
        """(N, latent), array or Tensor on the model's device -> (N, C, H, W): the mean of p(x|z).

        For a Bernoulli it is the probability of 1.
        """
        return self.likelihood(z).mean

    def reconstruct(self, x) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W): decoded from the mean of q(z|x)."""
        return self.decode(self.encode(x).mean)

    def bound(self, x, rng: np.random.Generator) -> Terms:
        """log p(x|z) for one z ~ q(z|x), and KL(q(z|x) || p(z)), of each image in nats.

        Source: Kingma and Welling 2014, section 3.
        """
        x = self._checked(x)  # (N, C, H, W)
        q = self.encode(x)  # N(m, s^2), m and s (N, latent)
        # z = m + s eps with eps ~ N(0, I);  log p(x|z) = sum_i log p(x_i|z) over the pixels i
        reconstruction = self.likelihood(q.rsample(rng)).log_prob(x).sum((1, 2, 3))
        # KL(q(z|x) || p(z)) = sum_j (m_j^2 + s_j^2 - 1 - log s_j^2) / 2 over the dimensions j of z
        return Terms(reconstruction, q.kl().sum(1))

    def loss(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """Mean of beta KL(q(z|x) || p(z)) - log p(x|z), in nats per image; for beta = 1 the mean score, -ELBO."""
        check.no_labels(labels)
        terms = self.bound(x, rng)
        return (self.beta * terms.kl - terms.reconstruction).mean()

    @no_grad()
    def log_likelihood(self, x, rng: np.random.Generator, samples: int = 5000):
        """(N,) array: log 1/K sum_k p(x, z_k) / q(z_k|x) with K = ``samples`` draws z_k ~ q(z|x), in nats.

        Its expectation is a lower bound on log p(x) that grows with K. Memory does not grow with K or N.
        Source: Burda et al. 2016, equation 8.
        """
        samples = check.count("samples", samples)
        x = self._checked(x).data
        m, prior = xp(x), Gaussian(Tensor(x.dtype.type(0)), Tensor(x.dtype.type(0)))
        parts = []
        for start in range(0, len(x), ENCODED):
            part = x[start : start + ENCODED]  # (n, C, H, W)
            q, n = self.encode(part), len(part)
            total = m.full(n, -m.inf, x.dtype)  # log sum_k w_k of the draws so far
            left = samples
            while left:
                k = min(left, max(1, DECODED // n))
                q_k = Gaussian(ops.broadcast_to(q.mean, (k, n, self.latent)), q.log_var)  # q for k draws per image
                z = q_k.rsample(rng)  # (k, n, latent)
                log_p = self.likelihood(z.reshape(k * n, self.latent)).log_prob(Tensor(m.concatenate([part] * k)))
                # log w = log p(x|z) + log p(z) - log q(z|x), (k, n)
                log_w = log_p.sum((1, 2, 3)).reshape(k, n) + (prior.log_prob(z) - q_k.log_prob(z)).sum(2)
                total = m.logaddexp(total, ops.logsumexp(log_w, 0).data)  # (n,)
                left -= k
            parts.append(total - math.log(samples))  # log 1/K sum_k w_k
        return m.concatenate(parts)

    @no_grad()
    def sample(self, n: int, rng: np.random.Generator, labels=None):
        """(n, C, H, W) array on the model's device: z ~ N(0, I), then x ~ p(x|z)."""
        check.no_labels(labels)
        return self.likelihood(self._prior(n, rng)).sample(rng)

    @no_grad()
    def sample_means(self, n: int, rng: np.random.Generator):
        """Like ``sample``, but returns the means of p(x|z) instead of draws, as pictures of VAEs usually do."""
        return self.decode(self._prior(n, rng)).data

    @no_grad()
    def complete(self, x, rng: np.random.Generator, mask, rounds: int = 200):
        """(N, C, H, W): the values of ``given`` where ``mask`` is True, elsewhere means of p(x|z).

        A Markov chain draws z ~ q(z|x) and x ~ p(x|z) in turn, ``rounds`` times, keeping the given values. It
        approaches draws conditioned on them. Source: Rezende et al. 2014 (arXiv 1401.4082), appendix F.
        """
        given = self._checked(x).data  # (N, C, H, W)
        m, mask = xp(given), to_device(as_array(mask, "mask"), self.device)
        x = m.where(mask, given, self.sample(len(given), rng))
        for _ in range(check.count("rounds", rounds)):
            p = self.likelihood(self.encode(x).rsample(rng))
            x = m.where(mask, given, p.sample(rng))
        return m.where(mask, given, p.mean.data)

    def _prior(self, n, rng):
        """n draws of z ~ N(0, I): (n, latent)"""
        n = check.count("n", n)
        return to_device(check.generator(rng).standard_normal((n, self.latent), self.dtype), self.device)

    def _checked(self, x):
        """x as a Tensor in the parameters' dtype, after checking it. For a Bernoulli its values must be 0 or 1."""
        return check_images(x, self.image_shape, 2 if self.log_var is None else None, grey=True).astype(self.dtype)


RECIPES = {
    "vae": Recipe(
        VAE,
        {"latent": 32, "channels": (32, 64, 64), "blocks": 1},
        protocol="dynamic",
        steps=(40_000,),
        lr=1.5e-3,
        batch_size=64,
        published="86.76",  # Burda et al. 2016, table 1, one layer
    ),
    "vae-2d": Recipe(VAE, {"latent": 2}, protocol="dynamic", steps=(5000,), lr=3e-3, weight_decay=0.0, batch_size=64),
}
