"""The beta-TCVAE (Chen et al. 2018, arXiv 1802.04942): a VAE whose dimensions are to be independent of each other.

With q(z) = 1/N sum_n q(z|x_n) over all N images, the KL term of the ELBO has three parts (equation 2):

    1/N sum_n KL(q(z|x_n) || p(z)) = I(z; n)                           what z tells about the image
                                   + KL(q(z) || prod_j q(z_j))         the total correlation of the dimensions
                                   + sum_j KL(q(z_j) || p(z_j))        how far each dimension is from its prior

The beta of a beta-VAE is the weight of all three; here it is that of the total correlation alone. Independent factors
of the images then tend to get a dimension each, as ``tinygen.factors`` measures.
"""

import math
from typing import NamedTuple

import numpy as np

from tinygen import check, ops
from tinygen.backend import xp
from tinygen.models.explicit.approximate.vae import VAE
from tinygen.models.networks import CHANNELS
from tinygen.models.recipe import Recipe
from tinygen.tensor import Tensor


class Parts(NamedTuple):
    """The reconstruction, and the KL term in three parts, each (M,) in nats, estimated with one z for each image."""

    reconstruction: Tensor  # log p(x|z)
    information: Tensor  # E_q[log q(z|x) - log q(z)]
    total_correlation: Tensor  # log q(z) - sum_j log q(z_j)
    dimensions: Tensor  # sum_j log q(z_j) - log p(z)


class TCVAE(VAE):
    """A VAE that is trained with ``beta`` times the total correlation. With beta = 1 it is a VAE; its score always is.

    ``images``: N, the number of training images. The other arguments are as for VAE.

    q(z) is estimated from the M images that ``loss`` is called with. In ``fit`` these are ``together`` images of the
    minibatch, or fewer at its end; on a device all of it. A larger minibatch only averages over more such estimates.
    Few images give a total correlation that is too low, even below zero: of one model of the sprites, trained for 800
    steps, it was -2.6 nats from 32 images, -0.9 from 256, 0.1 from 1,000 and 0.4 from 8,000.
    """

    together = 256

    def __init__(
        self,
        image_shape=(1, 28, 28),
        latent=10,
        beta=6.0,
        images=50_000,
        likelihood="bernoulli",
        channels=CHANNELS,
        blocks=0,
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, latent, beta, likelihood, channels, blocks, rng=rng)
        self.images = check.count("images", images, 2)

    def parts(self, x, rng: np.random.Generator) -> Parts:
        """(M, C, H, W) -> four times (M,). The last three sum to KL(q(z|x) || p(z)), whose exact value is used."""
        x = self._checked(x)
        q = self.encode(x)
        z = q.rsample(rng)  # (M, D)
        log_q, log_q_each = self._aggregate(q, z)
        log_p = self.prior().log_prob(z).sum(1)
        total_correlation, dimensions = log_q - log_q_each, log_q_each - log_p
        # E_q[log q(z|x) - log q(z)] = KL(q(z|x) || p(z)) - E_q[log q(z) - log p(z)]; the draw of log q(z|x) is noisier
        information = q.kl().sum(1) - total_correlation - dimensions
        return Parts(self.likelihood(z).log_prob(x).sum((1, 2, 3)), information, total_correlation, dimensions)

    def loss(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """Mean of information + beta total correlation + dimensions - log p(x|z), in nats per image (equation 4)."""
        check.no_labels(labels)
        parts = self.parts(x, rng)
        kl = parts.information + self.beta * parts.total_correlation + parts.dimensions
        return (kl - parts.reconstruction).mean()

    def _aggregate(self, q, z):
        """log q(z) and sum_j log q(z_j) of the draw z_i for each of M images, (M,) each.

        q(z_i) is estimated by 1/N q(z_i|x_i) + (N - 1)/N times the mean of q(z_i|x_m) over the other images m. This is
        the paper's minibatch-stratified sampling (appendix C.2), averaged over the order of the images: it is unbiased
        for q(z) if M > 1, and exact if the minibatch has all N images. The paper trains with minibatch-weighted
        sampling (equation S6), where every q(z_i|x_m) has the weight 1/(N M). If M is as small as a shard's, that
        counts x_i itself far too often; if it is N, log q(z) is log N too low and the total correlation (D - 1) log N
        too high.
        """
        m, n, array = len(z.data), self.images, xp(z.data)
        if m == 1:  # nothing is known of the other images
            n = 1
        own, other = -math.log(n), math.log(max(n - 1, 1) / n / max(m - 1, 1))
        log_weights = Tensor(array.where(array.eye(m, dtype=bool), own, other).astype(z.dtype))  # (M, M)
        log_q = q.log_prob(z.reshape(m, 1, self.latent))  # (M, M, D): log q(z_ij|x_m)
        joint = ops.logsumexp(log_q.sum(2) + log_weights, 1)
        return joint, ops.logsumexp(log_q + log_weights.reshape(m, m, 1), 1).sum(1)


RECIPES = {
    "beta-tcvae": Recipe(
        TCVAE,
        {"image_shape": (1, 32, 32), "latent": 10, "channels": (16, 32, 32, 32), "beta": 6.0, "images": 50_000},
        protocol="sprites",
        steps=(2000,),
        lr=5e-3,
        weight_decay=0.0,
        batch_size=256,
    )
}
