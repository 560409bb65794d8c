"""NICE: a flow of additive couplings (Dinh et al. 2014, arXiv 1410.8516)."""

import numpy as np

from tinygen import check, ops
from tinygen.models.explicit.tractable.flow import MLP, Coupling, Flow, Logistic
from tinygen.models.recipe import Recipe
from tinygen.nn import Module, init


class NICE(Flow):
    """Couplings y = x + m(the other half), in turn for each half, then one scale for each number; z is logistic.

    ``image_shape`` (C, H, W); ``levels`` and ``dequantization`` as in ``Flow``; ``couplings``: how many, 4 in the
    paper; ``hidden``: units of each of the ``layers`` hidden layers of m. The halves are those of a checkerboard: every
    other number. Raises ValueError for a number that is too small.

    Deviation from the paper: m starts at zero, so that the couplings start as the identity.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=256,
        couplings=4,
        hidden=80,
        layers=3,
        dequantization="uniform",
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, dequantization=dequantization, rng=rng)
        hidden, layers = check.count("hidden", hidden), check.count("layers", layers)
        check.room(rng, np.prod(self.image_shape, dtype=object))
        half, shape = np.indices(self.image_shape).sum(0) % 2, self.image_shape
        halves = ((half + i) % 2 for i in range(check.count("couplings", couplings)))
        chain = [Coupling(mask, MLP(shape, hidden, layers, outputs=1, rng=rng)) for mask in halves]
        self.scales = [[*chain, Scaling(shape)]]
        self.prior = Logistic()


class Scaling(Module):
    """y_i = x_i exp(log_scale_i), with a learned log_scale for each of the D numbers (section 3.3)."""

    def __init__(self, shape):
        self.log_scale = init.zeros(int(np.prod(shape)))

    def forward(self, x):
        # log |det| = sum_i log S_ii, the same for each image
        return x * ops.exp(self.log_scale).reshape(x.shape[1:]), ops.broadcast_to(self.log_scale.sum(), x.shape[:1])

    def inverse(self, y):
        return y * ops.exp(-self.log_scale).reshape(y.shape[1:])


RECIPES = {
    "nice": Recipe(
        NICE,
        {},
        protocol="8-bit",
        steps=(20_000,),
        lr=2e-3,
        batch_size=128,
        published="4.36",  # 8 - 1980.50 / (784 ln 2): Dinh et al. 2014, figure 3, in nats of images over 256
    )
}
