"""NADE, the neural autoregressive distribution estimator (Larochelle and Murray 2011)."""

import numpy as np

from tinygen import check, ops
from tinygen.backend import xp
from tinygen.models.explicit.tractable.belief_network import BeliefNetwork
from tinygen.models.recipe import Recipe
from tinygen.nn import init
from tinygen.optim import Adam
from tinygen.tensor import Tensor


class NADE(BeliefNetwork):
    """One hidden layer for each value, all with the same weights:

        h_i = sigmoid(c + sum_{j<i} W_j x_j),   p(x_i = 1 | x_<i) = sigmoid(b_i + V_i h_i)

    The sum is a running one, so all D values together cost no more than D * H multiplications.
    ``image_shape`` (C, H, W); ``levels`` values per pixel: with more than two, a softmax instead of the outer sigmoid;
    ``hidden``: units of the hidden layer. Raises ValueError for numbers that are too small.
    """

    def __init__(self, image_shape=(1, 28, 28), levels=2, hidden=500, *, rng: np.random.Generator):
        super().__init__(image_shape, levels)
        hidden = check.count("hidden", hidden)
        self.w = init.he(rng, (self.values, hidden), self.values, gain=1.0)
        self.v = init.he(rng, (self.values, self.outputs, hidden), hidden, gain=1.0)
        self.b, self.c = init.zeros((self.values, self.outputs)), init.zeros(hidden)

    def vector_logits(self, x):
        return ops.nade_logits(x, self.w, self.v, self.b, self.c)

    def conditionals(self, n, labels):
        w, v, b = self.w.data, self.v.data, self.b.data
        a = xp(w).zeros((n, w.shape[1]), w.dtype) + self.c.data  # pre-activations of the hidden units
        known = 0  # values that are in it

        def conditional(x, *position):
            nonlocal a, known
            i = self._index(*position)
            vectors = self._vectors(x)
            a += vectors[:, known:i] @ w[known:i]
            known = i
            h = ops.sigmoid(Tensor(a)).data
            return Tensor(v[i] @ h.T + b[i][:, None])

        return conditional


RECIPES = {
    "nade": Recipe(
        NADE,
        {"hidden": 500},
        protocol="published",
        steps=(9000,),
        optimizer=Adam,
        lr=1e-2,
        weight_decay=0.05,
        batch_size=256,
        published="88.33",  # quoted by Germain et al. 2015
    )
}
