"""MADE, the masked autoencoder for distribution estimation (Germain et al. 2015, arXiv 1502.03509)."""

import copy
import math

import numpy as np

from tinygen import check, ops
from tinygen.backend import xp
from tinygen.models.explicit.tractable.belief_network import BeliefNetwork
from tinygen.models.recipe import Recipe
from tinygen.nn import Buffer, MaskedLinear
from tinygen.optim import Adam
from tinygen.tensor import Tensor


class MADE(BeliefNetwork):
    """An autoencoder whose masks let output i see only the values before i, so that it gives p(x_i | x_<i).

    Value j has the rank r_j in the order, 0 to D - 1. Hidden unit k has a degree m_k, 0 to D - 2, the last rank that
    it sees. A weight is kept where

        m_k >= r_j   from value j to hidden unit k        r_i > m_k   from hidden unit k to output i
        m_k >= m_l   from hidden unit l to the next k     r_i > r_j   from value j to output i, directly

    ``image_shape`` (C, H, W); ``levels`` values per pixel: with more than two, a softmax for each; ``hidden``: units of
    each hidden layer, or of the only one; they have ReLUs. ``orders``: the first is ``order``, ``"raster"`` or
    ``"random"``, further ones are random. With several the model is their mixture, p(x) = 1/orders sum_o p_o(x), and
    each call of ``loss`` learns one that ``rng`` draws. Degrees are spread evenly, where the paper draws them.
    Raises ValueError for another order or numbers that are too small.
    """

    def __init__(
        self, image_shape=(1, 28, 28), levels=2, hidden=(500,), orders=1, order="raster", *, rng: np.random.Generator
    ):
        super().__init__(image_shape, levels)
        several = isinstance(hidden, tuple | list | np.ndarray)
        hidden, d = check.counts("hidden", hidden if several else (hidden,)), self.values
        check.room(rng, d * self.outputs * (d + hidden[-1]) + d * hidden[0])
        orders = check.count("orders", orders)
        check.room(rng, orders * d)
        ranks = [self._ranks(order, rng)] + [self._ranks("random", rng) for _ in range(orders - 1)]
        self.ranks = Buffer(np.stack(ranks))  # (orders, D), of each value
        degrees = [np.arange(units) * max(1, d - 1) // units for units in hidden]
        self.degrees = [Buffer(m) for m in degrees]  # of each layer's units
        into, out, direct = self._masks(ranks[0])
        self.first = MaskedLinear(into, rng=rng, gain=2.0)
        pairs = zip(degrees, degrees[1:])
        self.hidden = [MaskedLinear(after[:, None] >= before, rng=rng, gain=2.0) for before, after in pairs]
        self.last, self.direct = MaskedLinear(out, rng=rng, gain=0.0), MaskedLinear(direct, rng=rng, gain=0.0)

    def _masks(self, ranks):
        """The masks that depend on the order: of the first layer, of the last one, and of direct connections."""
        first, last = self.degrees[0].data, self.degrees[-1].data
        of_output = ranks.repeat(self.outputs)[:, None]  # (D K, 1)
        return first[:, None] >= ranks, of_output > last, of_output > ranks

    def in_order(self, o: int) -> "MADE":
        """The same network, with the same parameters, in its order number ``o`` alone."""
        model, o = copy.copy(self), check.axis("o", o, len(self.ranks.data))
        model.ranks = Buffer(self.ranks.data[o : o + 1])
        model.first, model.last, model.direct = map(copy.copy, (self.first, self.last, self.direct))
        model._set_masks()
        return model

    def _set_masks(self):
        """Mask the layers for the first order."""
        for layer, mask in zip((self.first, self.last, self.direct), self._masks(self.ranks.data[0])):
            layer.mask = mask.astype(layer.mask.dtype)

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._set_masks()  # for the orders that were loaded

    def vector_logits(self, x):
        if len(self.ranks.data) > 1:
            raise ValueError("MADE: conditionals belong to one of its orders: use model.in_order(0)")
        h = ops.relu(self.first(x))
        for layer in self.hidden:
            h = ops.relu(layer(h))
        return (self.last(h) + self.direct(x)).reshape(x.shape[0], self.values, self.outputs)

    def _log_prob(self, x, rng, labels):
        orders = len(self.ranks.data)
        if orders == 1:
            return super()._log_prob(x, rng, labels)
        if rng is not None:  # learn one of them
            return self.in_order(int(rng.integers(orders)))._log_prob(x, rng, labels)
        each = [self.in_order(o)._log_prob(x, None, labels) for o in range(orders)]
        return ops.logsumexp(ops.stack(each), 0) - math.log(orders)  # log 1/orders sum_o p_o(x)

    def positions(self):
        raster = super().positions()
        return [raster[i] for i in self.ranks.numpy()[0].argsort()]

    def sample_rows(self, n, rng, labels=None, given=None, mask=None, temperature=1.0, by_definition=False):
        """As every model's; with several orders, an order is drawn for each image. What is yielded is complete only
        at the end, unless the order is raster order."""
        orders = len(self.ranks.data)
        if orders == 1:
            yield from super().sample_rows(n, rng, labels, given, mask, temperature, by_definition)
            return
        x, _, keep, *_ = self._begin(n, rng, labels, given, mask, temperature)
        order, parts = rng.integers(orders, size=len(x)), []
        for o in np.unique(order):  # the images of one order are drawn together
            chosen = np.flatnonzero(order == o)
            drawn = len(chosen), rng, labels, x[chosen], keep[chosen], temperature, by_definition
            parts.append((chosen, self.in_order(int(o)).sample_rows(*drawn)))
        for _ in range(x.shape[2]):
            for chosen, part in parts:
                x[chosen] = next(part)
            yield x

    def conditionals(self, n, labels):
        """Each hidden unit is computed once: when the last value that it sees is known."""
        ranks, degrees = self.ranks.numpy()[0], [m.numpy() for m in self.degrees]
        layers = [self.first, *self.hidden]
        weights = [(layer.masked_weight().data, layer.bias.data[:, None]) for layer in layers]
        out, direct = self.last.masked_weight().data, self.direct.masked_weight().data
        bias = (self.last.bias.data + self.direct.bias.data)[:, None]
        m = xp(out)
        h = [m.zeros((len(b), n), out.dtype) for _, b in weights]

        def conditional(x, *position):
            i = self._index(*position)
            vectors = self._vectors(x).T  # (D, n)
            below = vectors
            for (weight, b), of_units, units in zip(weights, degrees, h):
                new = slice(*np.searchsorted(of_units, [ranks[i] - 1, ranks[i]]))  # m_k = r_i - 1
                units[new] = m.maximum(weight[new] @ below + b[new], 0)
                below = units
            own = slice(i * self.outputs, (i + 1) * self.outputs)
            return Tensor(out[own] @ below + direct[own] @ vectors + bias[own])

        return conditional


RECIPES = {
    "made": Recipe(
        MADE,
        {"hidden": (1000,), "order": "random"},
        protocol="published",
        steps=(9000,),
        optimizer=Adam,
        lr=5e-3,
        weight_decay=0.0,
        options={"l1": 0.05},
        batch_size=256,
        published="88.40",  # Germain et al. 2015, one mask
    )
}
