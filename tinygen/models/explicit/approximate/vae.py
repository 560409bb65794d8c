"""The variational autoencoder (Kingma and Welling 2014).

It maximizes ELBO(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)) <= log p(x).
"""

import math
from typing import NamedTuple

import numpy as np

from tinygen import check, ops
from tinygen.backend import xp
from tinygen.distributions import Bernoulli, Gaussian
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.models.networks import CHANNELS, Decoder, Encoder
from tinygen.models.recipe import Recipe
from tinygen.nn import init
from tinygen.tensor import Tensor, no_grad

ENCODED, DECODED = 64, 512  # images encoded and decoded at once in log_likelihood, to bound its memory


class Terms(NamedTuple):
    """The two terms of the evidence lower bound, each (N,) in nats."""

    reconstruction: Tensor  # E_q[log p(x|z)], estimated with one z
    kl: Tensor  # KL(q(z|x) || p(z)), exact, or estimated with the same z where it has no closed form

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
    ``samples``: draws of z for each image in the loss; with more than one, the loss is minus the importance-weighted
    bound (Burda et al. 2016). ``classes``: number of classes, or 0. With classes the model is p(x|z, class) with
    q(z|x, class), and whatever takes ``labels`` needs them: (N,), whole numbers 0 .. classes - 1.
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
        samples=1,
        classes=0,
        *,
        rng: np.random.Generator,
    ):
        check.choice("likelihood", likelihood, "bernoulli", "gaussian")
        self.image_shape, self.beta = check_shape(image_shape), check.number("beta", beta, "[0, inf)")
        self.latent, channels = check.count("latent", latent), check.counts("channels", channels)
        blocks, self.samples = check.count("blocks", blocks, 0), check.count("samples", samples)
        self.classes, (colours, height, width) = check.count("classes", classes, 0), self.image_shape
        # With classes the encoder sees a learned image of the class as a further colour, the decoder a learned vector
        seen, given = (colours + 1, 2 * self.latent) if self.classes else (colours, self.latent)
        self.encoder = Encoder((seen, height, width), self.outputs, channels, blocks, rng=rng)
        self.decoder = Decoder(self.image_shape, given, channels, blocks, rng=rng)
        self.log_var = init.zeros(1) if likelihood == "gaussian" else None
        if self.classes:
            check.room(rng, self.classes * (height * width + self.latent))
            self.class_image = init.zeros((self.classes, 1, height, width))
            self.class_vector = init.zeros((self.classes, self.latent))

    @property
    def outputs(self) -> int:
        """How many numbers the encoder says of an image: mean and log-variance of each dimension of z."""
        return 2 * self.latent

    def describe(self):
        return f"image_shape={self.image_shape}, latent={self.latent}, beta={self.beta}"

    def encode(self, x, labels=None) -> Gaussian:
        """q(z|x): (N, C, H, W) -> Gaussian over (N, latent)."""
        y = self.encoded(x, labels)  # (N, 2 latent)
        return Gaussian(y[:, : self.latent], y[:, self.latent :])

    def encoded(self, x, labels=None) -> Tensor:
        """The encoder's output, (N, outputs), from which ``encode`` makes a distribution."""
        x = self._checked(x)
        if (labels := check.classes(labels, self.classes, x.shape[0])) is not None:
            x = ops.concatenate([x, self.class_image[labels]], 1)
        return self.encoder(x)

    def prior(self) -> Gaussian:
        """p(z)"""
        zeros = Tensor(xp(self.encoder.out.bias.data).zeros(self.latent, self.dtype))
        return Gaussian(zeros, zeros)

    def likelihood(self, z, labels=None) -> Bernoulli | Gaussian:
        """p(x|z): (N, latent) -> distribution over (N, C, H, W)."""
        z = check.tensor("code", z, "N", self.latent)
        if (labels := check.classes(labels, self.classes, z.shape[0])) is not None:
            z = ops.concatenate([z.astype(self.dtype), self.class_vector[labels]], 1)
        y = self.decoder(z)  # (N, C, H, W): logits or means
        return Bernoulli(y) if self.log_var is None else Gaussian(y, self.log_var)

    def decode(self, z, labels=None) -> Tensor:
        """(N, latent), array or Tensor on the model's device -> (N, C, H, W): the mean of p(x|z).

        For a Bernoulli it is the probability of 1.
        """
        return self.likelihood(z, labels).mean

    def reconstruct(self, x, labels=None) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W): decoded from the mode of q(z|x), which is a Gaussian's mean."""
        return self.decode(self.encode(x, labels).mode, labels)

    # -- bounds on log p(x)

    def bound(self, x, rng: np.random.Generator, labels=None) -> Terms:
        """log p(x|z) for one z ~ q(z|x), and KL(q(z|x) || p(z)), of each image in nats.

        Source: Kingma and Welling 2014, section 3.
        """
        x = self._checked(x)  # (N, C, H, W)
        q = self.encode(x, labels)  # N(m, s^2), m and s (N, latent)
        z = self.draw(q, rng)  # m + s eps with eps ~ N(0, I)
        # log p(x|z) = sum_i log p(x_i|z) over the pixels i
        reconstruction = self.likelihood(z, labels).log_prob(x).sum((1, 2, 3))
        return Terms(reconstruction, self.kl(q, z))

    def draw(self, q, rng, draws: tuple[int, ...] = ()) -> Tensor:
        """z ~ q(z|x): (*draws, N, latent)"""
        return q.rsample(rng, draws)

    def kl(self, q, z) -> Tensor:
        """KL(q(z|x) || p(z)), (N,). It is exact here; a subclass may estimate it with z ~ q(z|x)."""
        # sum_j (m_j^2 + s_j^2 - 1 - log s_j^2) / 2 over the dimensions j of z
        return q.kl().sum(1)

    def loss(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """Mean of beta KL(q(z|x) || p(z)) - log p(x|z), in nats per image; for beta = 1 the mean score, -ELBO.

        With several ``samples`` z_k ~ q(z|x) it is the mean of -log 1/K sum_k p(x|z_k) (p(z_k) / q(z_k|x))^beta, whose
        gradient passes through all of them; for beta = 1 it is at most -ELBO in expectation, and falls with K.
        Source: Burda et al. 2016, equation 8.
        """
        if self.samples == 1:
            terms = self.bound(x, rng, labels)
            return (self.beta * terms.kl - terms.reconstruction).mean()
        x = self._checked(x)
        q = self.encode(x, labels)
        log_p, log_ratio = self.log_weights(x, q, self.draw(q, rng, (self.samples,)), labels)
        return math.log(self.samples) - ops.logsumexp(log_p + self.beta * log_ratio, 0).mean()

    @no_grad()
    def log_likelihood(self, x, rng: np.random.Generator, samples: int = 5000, labels=None):
        """(N,) array: log 1/K sum_k p(x, z_k) / q(z_k|x) with K = ``samples`` draws z_k ~ q(z|x), in nats.

        Its expectation is a lower bound on log p(x) that grows with K. Memory does not grow with K or N.
        Source: Burda et al. 2016, equation 8.
        """
        samples = check.count("samples", samples)
        x = self._checked(x)
        m, parts, labels = xp(x.data), [], check.classes(labels, self.classes, len(x.data))
        for start in range(0, len(x.data), ENCODED):
            some = slice(start, start + ENCODED)
            part, part_labels = x[some], None if labels is None else labels[some]  # (n, C, H, W), (n,)
            q, n = self.encode(part, part_labels), part.shape[0]
            total = m.full(n, -m.inf, x.dtype)  # log sum_k w_k of the draws so far
            left = samples
            while left:
                k = min(left, max(1, DECODED // n))
                log_p, log_ratio = self.log_weights(part, q, self.draw(q, rng, (k,)), part_labels)
                total = m.logaddexp(total, ops.logsumexp(log_p + log_ratio, 0).data)  # (n,)
                left -= k
            parts.append(total - math.log(samples))  # log 1/K sum_k w_k
        return m.concatenate(parts)

    def log_weights(self, x, q, z, labels=None) -> tuple[Tensor, Tensor]:
        """log p(x|z) and log p(z) - log q(z|x) for K draws z (K, N, latent) of each image, both (K, N)."""
        k, n = z.shape[:2]
        if labels is not None:
            labels = xp(labels).concatenate([labels] * k)
        images = ops.broadcast_to(x, (k, *x.shape)).reshape(k * n, *self.image_shape)
        log_p = self.likelihood(z.reshape(k * n, -1), labels).log_prob(images)
        # log p(z) and log q(z|x) are of each dimension of z, or of the whole of it
        log_prior, log_q = (p.log_prob(z).reshape(k, n, -1).sum(2) for p in (self.prior(), q))
        return log_p.sum((1, 2, 3)).reshape(k, n), log_prior - log_q

    # -- draws of x

    @no_grad()
    def sample(self, n: int, rng: np.random.Generator, labels=None):
        """(n, C, H, W) array on the model's device: z ~ p(z), then x ~ p(x|z)."""
        return self.likelihood(self._codes(n, rng), labels).sample(rng)

    @no_grad()
    def sample_means(self, n: int, rng: np.random.Generator, labels=None):
        """Like ``sample``, but returns the means of p(x|z) instead of draws, as pictures of VAEs usually do."""
        return self.decode(self._codes(n, rng), labels).data

    @no_grad()
    def complete(self, x, rng: np.random.Generator, mask, labels=None, rounds: int = 200):
        """(N, C, H, W): the values of x where ``mask`` is True, elsewhere means of p(x|z).

        A Markov chain draws z ~ q(z|x) and x ~ p(x|z) in turn, ``rounds`` times, keeping the given values. It
        approaches draws conditioned on them. Source: Rezende et al. 2014 (arXiv 1401.4082), appendix F.
        """
        given = self._checked(x).data  # (N, C, H, W)
        m, mask = xp(given), check.mask(mask, given.shape, self.device)
        x = m.where(mask, given, self.sample(len(given), rng, labels))
        for _ in range(check.count("rounds", rounds)):
            p = self.likelihood(self.draw(self.encode(x, labels), rng), labels)
            x = m.where(mask, given, p.sample(rng))
        return m.where(mask, given, p.mean.data)

    def _codes(self, n, rng):
        """n draws of z ~ p(z)"""
        return self.prior().sample(rng, (check.count("n", n),))

    def _checked(self, x):
        """x as a Tensor in the parameters' dtype, after checking it. For a Bernoulli its values must be 0 or 1."""
        return check_images(x, self.image_shape, 2 if self.log_var is None else None, grey=True).astype(self.dtype)


WEIGHTED = {"latent": 32, "channels": (32, 64, 64), "blocks": 1, "samples": 5}
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
    "vae-static": Recipe(
        VAE,
        WEIGHTED,
        protocol="published",
        steps=(24_000,),
        lr=1.5e-3,
        batch_size=64,
        published="87.10",  # Burda et al. 2016, table 2, one layer, trained with 50 samples; 88.71 with one
    ),
    "vae-2d": Recipe(VAE, {"latent": 2}, protocol="dynamic", steps=(5000,), lr=3e-3, weight_decay=0.0, batch_size=64),
}
