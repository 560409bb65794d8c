"""A VAE whose code is discrete, trained with the Gumbel-softmax relaxation (Jang et al. 2017, arXiv 1611.01144)."""

import numpy as np

from tinygen import check
from tinygen.backend import xp
from tinygen.distributions import OneHot
from tinygen.models.explicit.approximate.vae import VAE
from tinygen.models.recipe import Recipe
from tinygen.tensor import Tensor, as_flag


class CategoricalVAE(VAE):
    """z is ``variables`` independent one-hot vectors of ``values`` numbers each, uniform under p(z).

    KL(q(z|x) || p(z)) is a finite sum, but a draw of z has no gradient. So the loss draws the relaxed
    z = softmax((log q + g) / temperature) with Gumbel noise g. A high ``temperature`` (``fit`` can anneal it) gives a
    gradient with little variance, but of another model: z is then not discrete. With ``straight_through`` the decoder
    sees discrete z in the loss, too, and the gradient is still that of the relaxed z.
    ``bound``, ``score`` and ``log_likelihood`` are those of the discrete model: their z is drawn from q itself.
    Other arguments are as for ``VAE``, but for ``latent`` and ``samples``.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        variables=30,
        values=10,
        temperature=1.0,
        straight_through=False,
        *,
        rng: np.random.Generator,
        **settings,
    ):
        self.variables, self.values = check.count("variables", variables), check.count("values", values, 2)
        self.temperature = check.number("temperature", temperature, "[1e-30, 1e30]")
        self.straight_through = as_flag(straight_through, "straight_through")
        super().__init__(image_shape, self.variables * self.values, rng=rng, **settings)
        if self.samples > 1:
            raise ValueError(f"samples: got {self.samples}, needs 1: a relaxed z has no probability")

    @property
    def outputs(self) -> int:
        """How many numbers the encoder says of an image: the logits of each variable."""
        return self.latent

    def encode(self, x, labels=None) -> OneHot:
        """q(z|x): (N, C, H, W) -> one-hot vectors (N, variables, values)."""
        return OneHot(self.encoded(x, labels).reshape(-1, self.variables, self.values))

    def prior(self) -> OneHot:
        """p(z), uniform"""
        return OneHot(Tensor(xp(self.encoder.out.bias.data).zeros((self.variables, self.values), self.dtype)))

    def likelihood(self, z, labels=None):
        """p(x|z): (N, variables, values), or with the last two axes as one -> distribution over (N, C, H, W)."""
        z = check.tensor("code", z, "N", ...)
        return super().likelihood(z.reshape(z.shape[0], -1), labels)

    def draw(self, q, rng, draws: tuple[int, ...] = ()) -> Tensor:
        """z ~ q(z|x), one-hot: (*draws, N, variables, values), constants without gradient."""
        return Tensor(q.sample(rng, draws))

    def loss(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """Mean of beta KL(q(z|x) || p(z)) - log p(x|z) with a relaxed z, in nats per image.

        The KL is that of the discrete q and p. That of the relaxed distributions has no closed form, and the bound does
        not use it.
        """
        x = self._checked(x)
        q = self.encode(x, labels)
        z = q.rsample(rng, self.temperature, self.straight_through)
        reconstruction = self.likelihood(z, labels).log_prob(x).sum((1, 2, 3))
        return (self.beta * self.kl(q, z) - reconstruction).mean()


RECIPES = {
    "vae-categorical": Recipe(
        CategoricalVAE,
        {"variables": 30, "values": 8, "temperature": 0.5, "channels": (32, 64, 64), "blocks": 1},
        protocol="published",
        steps=(8000,),
        lr=1.5e-3,
        batch_size=64,
        published="101.5",  # Jang et al. 2017, table 1: minus the ELBO, looser than the bound here
    )
}
