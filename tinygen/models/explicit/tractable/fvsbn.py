"""FVSBN, the fully visible sigmoid belief network: a logistic regression for every pixel (Frey et al. 1996; Gan et al.
2015, arXiv 1502.05366)."""

import numpy as np

from tinygen import check
from tinygen.models.explicit.tractable.belief_network import BeliefNetwork
from tinygen.models.recipe import Recipe
from tinygen.nn import Buffer, MaskedLinear
from tinygen.optim import Adam
from tinygen.tensor import Tensor


class FVSBN(BeliefNetwork):
    """p(x_i = 1 | x_<i) = sigmoid(b_i + sum_{j<i} W_ij x_j), where j < i means that j comes before i in the order: one
    matrix, which raster order makes zero on and above the diagonal.

    ``image_shape`` (C, H, W); ``levels`` values per pixel: with more than two, a softmax instead of the sigmoid;
    ``order``: ``"raster"``, or ``"random"``, drawn once. In a random order most pixels have neighbours on all sides
    among those before them, and interpolating is easier for a linear function than extrapolating. All weights start at
    zero. Raises ValueError for another order or numbers that are too small.
    """

    def __init__(self, image_shape=(1, 28, 28), levels=2, order="raster", *, rng: np.random.Generator):
        super().__init__(image_shape, levels)
        check.room(rng, self.values**2 * self.outputs)
        self.ranks = Buffer(self._ranks(order, rng))  # (D,)
        self.linear = MaskedLinear(self._mask(), rng=rng, gain=0.0)  # (D K, D)

    def _mask(self):
        """1 from each value to the outputs of those that come later."""
        return self.ranks.data.repeat(self.outputs)[:, None] > self.ranks.data

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.linear.mask = self._mask().astype(self.linear.mask.dtype)  # for the order that was loaded

    def vector_logits(self, x):
        return self.linear(x).reshape(x.shape[0], self.values, self.outputs)

    def positions(self):
        return self._in_order(self.ranks)

    def conditionals(self, n, labels):
        weight, bias = self.linear.masked_weight().data, self.linear.bias.data

        def conditional(x, *position):
            i = self._index(*position)
            own = slice(i * self.outputs, (i + 1) * self.outputs)
            return Tensor(weight[own] @ self._vectors(x).T + bias[own, None])

        return conditional


RECIPES = {
    "fvsbn": Recipe(
        FVSBN,
        {"order": "random"},
        protocol="published",
        steps=(8000,),
        optimizer=Adam,
        lr=2e-2,
        weight_decay=0.0,
        options={"l1": 0.05},
        batch_size=256,
        published="97.45",  # quoted in the literature on belief networks; its source was not found
    )
}
