"""The variational autoencoder (Kingma and Welling 2014)."""

import math
from typing import NamedTuple

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.distributions import Bernoulli, Gaussian
from tinygen.models.images import check_images, check_shape
from tinygen.models.networks import CHANNELS, Decoder, Encoder
from tinygen.nn import Module, init
from tinygen.tensor import Tensor, no_grad

ENCODED, DECODED = 64, 512  # images at once in log_likelihood, which bounds its memory


class Terms(NamedTuple):
    """The two terms of the evidence lower bound, each (N,) in nats: ELBO(x) = reconstruction - kl <= log p(x)."""

    reconstruction: Tensor  # E_q[log p(x|z)], estimated with one z
    kl: Tensor  # KL(q(z|x) || p(z)), exact


class VAE(Module):
    """z ~ N(0, I), x ~ p(x|z), with q(z|x) a diagonal Gaussian; encoder and decoder as in the autoencoder.

    ``image_shape`` (C, H, W), any size; ``latent``: dimensions of z; ``beta``: weight of the KL term in the loss
    (1: the ELBO; Higgins et al. 2017). ``likelihood``: ``"bernoulli"`` for images of 0 and 1, or ``"gaussian"`` for
    real ones, whose variance is one learned number for all pixels. ``channels``: after each convolution; ``blocks``:
    residual ones after each convolution and before each upconvolution.
    Raises ValueError for another likelihood, or numbers that make no sense.
    """

    unit = "nats per image"  # of the loss

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
        y = self.encoder(self._checked(x))
        return Gaussian(y[:, : self.latent], y[:, self.latent :])

    def likelihood(self, z) -> Bernoulli | Gaussian:
        """p(x|z): (N, latent) -> distribution over (N, C, H, W)."""
        y = self.decoder(z)
        return Bernoulli(y) if self.log_var is None else Gaussian(y, self.log_var)

    def decode(self, z) -> Tensor:
        """(N, latent), array or Tensor on the model's device -> (N, C, H, W): the mean of p(x|z), for a Bernoulli the
        probability of 1."""
        return self.likelihood(z).mean

    def reconstruct(self, x) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W): decoded from the mean of q(z|x)."""
        return self.decode(self.encode(x).mean)

    def elbo(self, x, rng: np.random.Generator) -> Terms:
        """Reconstruction and KL of each image, in nats (equation 10 with L = 1)."""
        x = self._checked(x)
        q = self.encode(x)
        reconstruction = self.likelihood(q.rsample(rng)).log_prob(x).sum((1, 2, 3))
        return Terms(reconstruction, q.kl().sum(1))

    def loss(self, x, rng: np.random.Generator) -> Tensor:
        """Mean of -(reconstruction - beta KL), in nats per image."""
        terms = self.elbo(x, rng)
        return (self.beta * terms.kl - terms.reconstruction).mean()

    @no_grad()
    def log_likelihood(self, x, rng: np.random.Generator, samples: int = 5000):
        """(N,) array: log 1/K sum_k p(x, z_k) / q(z_k|x) with K = ``samples`` draws of q, in nats.

        A lower bound on log p(x) in expectation, tighter with every sample. Streamed: memory does not grow with K or N.
        Source: Burda et al. 2016, equation 8.
        """
        samples = check.count("samples", samples)
        x = self._checked(x).data
        m, prior = xp(x), Gaussian(Tensor(x.dtype.type(0)), Tensor(x.dtype.type(0)))
        parts = []
        for start in range(0, len(x), ENCODED):
            part = x[start : start + ENCODED]
            q, n = self.encode(part), len(part)
            total = m.full(n, -m.inf, x.dtype)
            left = samples
            while left:
                k = min(left, max(1, DECODED // n))
                wide = Gaussian(ops.broadcast_to(q.mean, (k, n, self.latent)), q.log_var)
                z = wide.rsample(rng)
                p = self.likelihood(z.reshape(k * n, self.latent)).log_prob(Tensor(m.concatenate([part] * k)))
                log_w = p.sum((1, 2, 3)).reshape(k, n) + (prior.log_prob(z) - wide.log_prob(z)).sum(2)
                total = m.logaddexp(total, ops.logsumexp(log_w, 0).data)
                left -= k
            parts.append(total - math.log(samples))
        return m.concatenate(parts)

    @no_grad()
    def sample(self, n: int, rng: np.random.Generator):
        """(n, C, H, W) array on the model's device: the means, not draws, of p(x|z) for n draws of z from the prior."""
        n = check.count("n", n)
        z = check.generator(rng).standard_normal((n, self.latent), self.dtype)
        return self.decode(to_device(z, self.device)).data

    def _checked(self, x):
        """A Tensor in the parameters' dtype; values 0 and 1 only where the likelihood is a Bernoulli."""
        return check_images(x, self.image_shape, 2 if self.log_var is None else None, grey=True).astype(self.dtype)
