"""FVSBN, the fully visible sigmoid belief network: a logistic regression for every pixel (Frey et al. 1996; Gan et al.
2015, arXiv 1502.05366)."""

import numpy as np

from tinygen import check
from tinygen.models.explicit.tractable.belief_network import BeliefNetwork
from tinygen.models.recipe import Recipe
from tinygen.nn import MaskedLinear
from tinygen.optim import Adam
from tinygen.tensor import Tensor


class FVSBN(BeliefNetwork):
    """p(x_i = 1 | x_<i) = sigmoid(b_i + sum_{j<i} W_ij x_j): one matrix, zero on and above the diagonal.

    ``image_shape`` (C, H, W); ``levels`` values per pixel: with more than two, a softmax instead of the sigmoid.
    All weights start at zero. Raises ValueError for numbers that are too small.
    """

    def __init__(self, image_shape=(1, 28, 28), levels=2, *, rng: np.random.Generator):
        super().__init__(image_shape, levels)
        check.room(rng, self.values**2 * self.outputs)
        output, value = np.arange(self.values * self.outputs) // self.outputs, np.arange(self.values)
        self.linear = MaskedLinear(output[:, None] > value, rng=rng, gain=0.0)  # (D K, D)

    def vector_logits(self, x):
        return self.linear(x).reshape(x.shape[0], self.values, self.outputs)

    def conditionals(self, n, labels):
        weight, bias = self.linear.masked_weight().data, self.linear.bias.data

        def conditional(x, *position):
            i = self._index(*position)
            own = slice(i * self.outputs, (i + 1) * self.outputs)
            return Tensor(weight[own, :i] @ self._vectors(x)[:, :i].T + bias[own, None])

        return conditional


RECIPES = {
    "fvsbn": Recipe(
        FVSBN,
        {},
        protocol="published",
        steps=(4000,),
        optimizer=Adam,
        lr=1e-2,
        batch_size=256,
        published="97.45",  # quoted in the literature on belief networks; its source was not found
    )
}
