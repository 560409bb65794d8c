"""VAEs with mixtures of Gaussians: as the prior, such as VampPrior (Tomczak and Welling 2018), or as the posterior.

KL(q(z|x) || p(z)) = E_q[log q(z|x) - log p(z)] then has no closed form, and is estimated with draws z ~ q(z|x).
"""

import numpy as np

from tinygen import check, ops
from tinygen.distributions import Gaussian, GaussianMixture
from tinygen.models.explicit.approximate.vae import VAE, WEIGHTED, Terms
from tinygen.models.recipe import Recipe
from tinygen.nn import init
from tinygen.tensor import Tensor


class MixturePriorVAE(VAE):
    """A VAE with p(z) = sum_k w_k N(z; m_k, s_k^2), learned together with the networks.

    ``components``: their number K. ``kind``: ``"gaussians"`` for free w, m and s; ``"vamp"`` for VampPrior,
    p(z) = 1/K sum_k q(z|u_k), where the images u_k in (0, 1), called pseudo-inputs, are learned. The prior is then as
    close to the average posterior as K images allow. Other arguments are as for ``VAE``.
    Source: Tomczak and Welling 2018 (arXiv 1705.07120), section 3. Pseudo-inputs are kept in (0, 1) by a sigmoid here;
    clipping has no gradient outside.
    """

    def __init__(self, *args, components=100, kind="gaussians", rng: np.random.Generator, **settings):
        super().__init__(*args, rng=rng, **settings)
        self.components = check.count("components", components)
        self.kind = check.choice("kind", kind, "gaussians", "vamp")
        if self.kind == "vamp":
            seen = (self.encoder.convs[0].weight.shape[1], *self.image_shape[1:])  # with classes also their image
            self.inputs = init.he(rng, (self.components, *seen), fan_in=1, gain=1.0)
        else:
            self.means = init.he(rng, (self.components, self.latent), fan_in=1, gain=1.0)
            self.log_vars = init.zeros((self.components, self.latent))
            self.logits = init.zeros(self.components)

    def prior(self) -> GaussianMixture:
        """p(z)"""
        if self.kind == "gaussians":
            return GaussianMixture(self.logits, Gaussian(self.means, self.log_vars))
        y = self.encoder(ops.sigmoid(self.inputs))  # (K, 2 latent)
        components = Gaussian(y[:, : self.latent], y[:, self.latent :])
        return GaussianMixture(Tensor(y.data[:, 0] * 0), components)  # equal weights

    def kl(self, q, z) -> Tensor:
        """log q(z|x) - log p(z), (N,), whose mean over z ~ q(z|x) is KL(q(z|x) || p(z))."""
        return q.log_prob(z).sum(1) - self.prior().log_prob(z)


class MixturePosteriorVAE(VAE):
    """A VAE with q(z|x) = sum_k w_k(x) N(z; m_k(x), s_k(x)^2): all three are the encoder's output.

    ``components``: their number K. Other arguments are as for ``VAE``, but for ``samples``.

    A draw of k has no gradient in w. But the ELBO is a sum over k of expectations under Gaussians,
    ELBO(x) = sum_k w_k E_{z ~ N(m_k, s_k^2)}[log p(x, z) - log q(z|x)],
    so with one draw of each component, weighted by w, it has the right gradient in all of w, m and s. It takes K passes
    through the decoder. Source: Morningstar et al. 2021 (arXiv 2003.01687).
    """

    def __init__(self, *args, components=4, rng: np.random.Generator, **settings):
        self.components = check.count("components", components)
        super().__init__(*args, rng=rng, **settings)
        if self.samples > 1:
            raise ValueError(f"samples: got {self.samples}, needs 1: a draw from a mixture has no gradient in w")

    @property
    def outputs(self) -> int:
        """How many numbers the encoder says of an image: each component's logit, mean and log-variance."""
        return self.components * (1 + 2 * self.latent)

    def encode(self, x, labels=None) -> GaussianMixture:
        """q(z|x): (N, C, H, W) -> mixture over (N, latent)."""
        y = self.encoded(x, labels)
        y = y.reshape(y.shape[0], self.components, -1)  # (N, K, 1 + 2 latent): logit, mean, log-variance
        components = Gaussian(y[:, :, 1 : 1 + self.latent], y[:, :, 1 + self.latent :])
        return GaussianMixture(y[:, :, 0], components)

    def bound(self, x, rng: np.random.Generator, labels=None) -> Terms:
        """The ELBO's two terms of each image in nats, with one z of each component."""
        x = self._checked(x)
        q = self.encode(x, labels)
        z, w = q.components.rsample(rng).transpose(1, 0, 2), q.weights.T  # (K, N, latent), (K, N)
        log_p, log_ratio = self.log_weights(x, q, z, labels)
        return Terms((w * log_p).sum(0), -(w * log_ratio).sum(0))

    def draw(self, q, rng, draws: tuple[int, ...] = ()) -> Tensor:
        """z ~ q(z|x): (*draws, N, latent), constants without gradient."""
        return Tensor(q.sample(rng, draws))


RECIPES = {
    "vae-mixture": Recipe(
        MixturePriorVAE,
        {**WEIGHTED, "components": 500},
        protocol="published",
        steps=(24_000,),
        lr=1.5e-3,
        batch_size=64,
        published="85.57, VampPrior",  # Tomczak and Welling 2018, table 1, one layer; here free Gaussians
    )
}
