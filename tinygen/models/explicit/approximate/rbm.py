"""The restricted Boltzmann machine (Smolensky 1986; Hinton 2002), a density known up to its normalizer Z.

Binary pixels v and binary hidden units h have p(v, h) = exp(b.v + c.h + h.W v) / Z. Summed over h,

    log p(v) = -F(v) - log Z    with the free energy    F(v) = -b.v - sum_j softplus(c_j + W_j.v)

Z sums over all images, so neither it nor its gradient is computed. Gibbs sampling draws images for the gradient, and
annealed importance sampling estimates log Z.

Here v and h are centred: v - m and h - 1/2 replace them, with m about the pixels' means in the data. The distributions
are the same, with other values of b and c, but gradients are better conditioned, so that learning is faster (Montavon
and Müller 2012; Melchior et al. 2016). With a_j = c_j + W_j.(v - m),

    F(v) = -b.(v - m) - sum_j (softplus(a_j) - a_j / 2)
"""

import math
from typing import NamedTuple

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.distributions import Bernoulli
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.models.recipe import Recipe
from tinygen.nn import Buffer, Parameter, RowBuffer, init
from tinygen.optim import SGD
from tinygen.tensor import Tensor, no_grad

FEW, MOST = 12, 20  # hidden units up to which score enumerates their values, and up to which that is possible
ROUGHLY = 300, 20  # temperatures and chains of a score
RESTART = 1e-3  # the probability with which a chain begins anew before a gradient
PART = 4096  # values of the hidden units enumerated at once, to bound the memory


class Estimate(NamedTuple):
    """log Z in nats, and its standard error."""

    value: float
    error: float


class RBM(Model):
    """Each pixel is connected with each of the ``hidden`` units, and with no other pixel: given one layer, the units of
    the other are independent.

    ``image_shape`` (C, H, W), any size. ``steps``: rounds of Gibbs sampling for each gradient. ``chains``: how many
    Markov chains go on from one gradient to the next, as many as a minibatch has images (persistent contrastive
    divergence, Tieleman 2008); with 0 the rounds begin at the images (CD-k with k = ``steps``, Hinton 2002).
    A few of the chains begin anew at noise now and then. Chains that began at images stay near them, and the model may
    then give most of its probability to images, far from these, that no chain ever visits. Here a chain finds them.
    Raises ValueError for numbers that are too small.
    """

    def __init__(self, image_shape=(1, 28, 28), hidden=500, steps=1, chains=500, *, rng: np.random.Generator):
        self.image_shape, self.steps = check_shape(image_shape), check.count("steps", steps)
        hidden, chains = check.count("hidden", hidden), check.count("chains", chains, 0)
        d = math.prod(self.image_shape)
        check.room(rng, d * (hidden + chains))
        # Small weights, as in Hinton's practical guide (2012), section 8
        self.weight = Parameter(0.01 * check.generator(rng).standard_normal((hidden, d), np.float32))  # W
        self.bias, self.hidden_bias = init.zeros(d), init.zeros(hidden)  # b, c
        self.base = Buffer(np.zeros(d, np.float32))  # the log-odds of m, where annealing begins
        self.initialized = Buffer(np.zeros(1, np.float32))  # 1: the model has seen images
        self.chains = RowBuffer(np.zeros((chains, d), np.float32)) if chains else None

    def describe(self):
        return f"image_shape={self.image_shape}, hidden={self.hidden_bias.size}, steps={self.steps}"

    @no_grad()
    def initialize(self, x, rng=None, labels=None):
        """Begin at the first minibatch: b has the log-odds of its pixels, and the chains start at its images.

        A model that has seen images stays as it is.
        """
        check.no_labels(labels)
        v = self._vectors(x).data
        m, n = xp(v), len(v)
        if not self.initialized.data.any():
            self.initialized.data = self.initialized.data + 1
            on = (v.sum(0) + 1) / (n + 2)  # as if it had two images more, one white and one black
            self.base.data = (m.log(on) - m.log(1 - on)).astype(self.base.dtype)
            self.bias.data = self.base.data.astype(self.dtype)
            if self.chains is not None:
                self.chains.data = v[m.arange(len(self.chains.data)) % n].astype(self.chains.dtype)

    # -- the distributions of one layer given the other; v (N, D) are images as vectors, h (N, H) hidden units

    def hidden_logits(self, v) -> Tensor:
        """a: p(h_j = 1 | v) = sigmoid(c_j + W_j.(v - m)): (N, D) -> (N, H)"""
        return (v - self.mean) @ self.weight.T + self.hidden_bias

    def visible_logits(self, h) -> Tensor:
        """p(v_i = 1 | h) = sigmoid(b_i + ((h - 1/2) W)_i): (N, H) -> (N, D)"""
        return (h - 0.5) @ self.weight + self.bias

    @property
    def mean(self) -> Tensor:
        """m (D,): the pixels' means in the first minibatch; 1/2 before it."""
        return ops.sigmoid(self.base)

    @no_grad()
    def gibbs(self, v, rng: np.random.Generator, beta: float = 1.0, base=0.0):
        """One round of Gibbs sampling, h ~ p(h | v), then v ~ p(v | h): an array (N, D) -> (N, D).

        It leaves p(v) as it is; with another ``beta``, the distribution p_beta of ``log_z`` with this ``base``.
        """
        units = self.hidden_bias.size
        u = rng.random((len(v), units + v.shape[1]), np.float32)  # on the host, so that devices can be compared
        u = to_device(u, self.device)
        h = Bernoulli(beta * self.hidden_logits(Tensor(v))).at(u[:, :units])
        return Bernoulli(beta * self.visible_logits(Tensor(h)) + (1 - beta) * base).at(u[:, units:])

    # -- learning

    def free_energy(self, x) -> Tensor:
        """(N, C, H, W) -> (N,): F(v) in nats, which is -log p(v) without log Z."""
        return -self._log_p(self._vectors(x))

    def _log_p(self, v, beta=1.0, base=None):
        """(N,): log p*_beta(v), see ``log_z``; for beta = 1 it is -F(v), b.(v - m) + sum_j (softplus(a_j) - a_j / 2)"""
        a = beta * self.hidden_logits(v)
        log_p = beta * ((v - self.mean) @ self.bias) + (ops.softplus(a) - 0.5 * a).sum(1)
        return log_p if base is None else log_p + (1 - beta) * (v @ base)

    def loss(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """The mean F of the images less the mean F of the chains after ``steps`` rounds, held constant.

        Only the gradient means something. For chains that have reached p it is that of the mean -log p(x) on average,
        since d log Z = -E_p[dF]. In ``fit`` the i-th image of a minibatch comes with the i-th chain.
        """
        check.no_labels(labels)
        x, chains = self._vectors(x), self.chains
        v = x.data if chains is None else self._some_anew(chains.data[: x.shape[0]].astype(self.dtype), rng)
        if len(v) < x.shape[0]:
            raise ValueError(
                f"chains: {x.shape[0]} images have {len(v)} of them, needs as many as a minibatch has images"
            )
        for _ in range(self.steps):
            v = self.gibbs(v, check.generator(rng))
        if chains is not None:
            rest = chains.data[len(v) :]
            chains.data = xp(v).concatenate([v.astype(chains.dtype), rest])
        return self._log_p(Tensor(v)).mean() - self._log_p(x).mean()

    def _some_anew(self, v, rng):
        """The chains (N, D); each begins anew at pixels that are 0 or 1 alike, with probability RESTART."""
        u = to_device(check.generator(rng).random((len(v), 1 + v.shape[1]), np.float32), self.device)
        return xp(v).where(u[:, :1] < RESTART, (u[:, 1:] < 0.5).astype(v.dtype), v)

    # -- likelihood

    @no_grad()
    def score(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): -log p(x) = F(x) + log Z in nats.

        With more than 12 hidden units it is a rough estimate, for which each call anneals anew. ``free_energy(x)`` plus
        one careful ``log_z`` serves many images better. It has no gradient.
        """
        check.no_labels(labels), check.generator(rng)
        if self.hidden_bias.size <= FEW:
            return -self.log_prob(x)
        return self.free_energy(x) + self.log_z(rng, *ROUGHLY).value

    def log_prob(self, x, labels=None) -> Tensor:
        """(N, C, H, W) -> (N,): the exact log p(x) in nats. Raises ValueError for more than 20 hidden units."""
        check.no_labels(labels)
        return -self.free_energy(x) - self.exact_log_z()

    def exact_log_z(self) -> Tensor:
        """log sum_h exp(c.(h - 1/2) + sum_i (softplus(l_i) - m_i l_i)), l = b + (h - 1/2) W, over all values of h.

        Raises ValueError for more than 20 of them.
        """
        units = self.hidden_bias.size
        if units > MOST:
            raise ValueError(f"exact_log_z: {units} hidden units have too many values, needs at most {MOST}; see log_z")
        terms = []
        for start in range(0, 2**units, PART):
            number = np.arange(start, min(start + PART, 2**units))
            h = Tensor(to_device((number[:, None] >> np.arange(units) & 1).astype(self.dtype), self.device))
            terms.append(ops.logsumexp(self.log_p_hidden(h), 0))
        return ops.logsumexp(ops.stack(terms), 0)

    def log_p_hidden(self, h) -> Tensor:
        """(N, H) -> (N,): log p(h) + log Z"""
        l = self.visible_logits(h)  # (N, D)
        return (h - 0.5) @ self.hidden_bias + (ops.softplus(l) - self.mean * l).sum(1)

    @no_grad()
    def log_z(self, rng: np.random.Generator, temperatures: int = 1000, chains: int = 100, samples=None) -> Estimate:
        """log Z by annealed importance sampling over ``temperatures``, and the standard error.

        ``chains`` go from independent pixels with log-odds ``base``, where Z is known, to the model, through

            p_beta(v) ~ exp((1 - beta) base.v + beta b.(v - m) + sum_j (softplus(beta a_j) - beta a_j / 2)),

        beta from 0 to 1. Z / Z_0 is the mean of weights w = prod p*_next(v) / p*_beta(v), p* unnormalized. The mean is
        right for any number of temperatures, but few chains miss rare large weights, or a mode that is far from where
        they begin: then log Z, and so -log p(x), is too low. So they go twice, from the data's frequencies and from
        pixels that are 0 or 1 alike, and the larger estimate counts.

        ``samples`` (N, C, H, W) of the model turn the direction: from the model to the data's frequencies. The weights
        are those of Z_0 / Z, and log Z errs upwards, so the truth lies between both, if the samples are exact. Source:
        Salakhutdinov and Murray 2008, section 3; Grosse et al. 2015 (arXiv 1511.02543) for the other end.
        """
        betas = np.linspace(0, 1, check.count("temperatures", temperatures) + 1)
        chains, rng = check.count("chains", chains, 2), check.generator(rng)
        if samples is None:
            starts = self.base, Tensor(xp(self.base.data).zeros_like(self.base.data))
            return max(self._anneal(self._independent(chains, rng, base), betas, base, rng) for base in starts)
        v = self._vectors(samples).data
        if len(v) < 2:
            raise ValueError("samples: got 1, needs at least 2 for a standard error")
        return self._anneal(v, betas[::-1], self.base, rng)

    def _anneal(self, v, betas, base, rng) -> Estimate:
        """log Z from the chains v (N, D), exact draws at betas[0]."""
        m, log_w = xp(v), 0.0
        for beta, after in zip(betas.tolist(), betas[1:].tolist()):
            ratio = self._log_p(Tensor(v), after, base) - self._log_p(Tensor(v), beta, base)
            log_w, v = log_w + ratio.data.astype(np.float64), self.gibbs(v, rng, after, base)
        log_z0 = float(ops.softplus(base).sum().item()) + self.hidden_bias.size * math.log(2)
        largest = log_w.max()
        w = m.exp(log_w - largest)
        gain, error = float(largest + m.log(w.mean())), float(w.std(ddof=1) / w.mean() / math.sqrt(len(w)))
        return Estimate(log_z0 + gain if betas[0] == 0 else log_z0 - gain, error)

    # -- images

    def sample(self, n: int, rng: np.random.Generator, labels=None, rounds: int = 1000):
        """n images (n, C, H, W) of 0 and 1 on the model's device: what chains from independent pixels have reached.

        They approach draws from p as the ``rounds`` become many.
        """
        check.no_labels(labels)
        v = self._independent(check.count("n", n), check.generator(rng), self.base)
        for _ in range(check.count("rounds", rounds, 0)):
            v = self.gibbs(v, rng)
        return v.reshape(-1, *self.image_shape)

    def complete(self, x, rng: np.random.Generator, mask, rounds: int = 200):
        """(N, C, H, W): the values of x where ``mask`` is True; elsewhere what a chain that keeps these has reached."""
        x = self._vectors(x).reshape(-1, *self.image_shape).data
        m, mask = xp(x), check.mask(mask, x.shape, self.device)
        v = self._independent(len(x), check.generator(rng), self.base)
        for _ in range(check.count("rounds", rounds)):
            v = m.where(mask, x, v.reshape(x.shape)).reshape(v.shape)
            v = self.gibbs(v, rng)
        return m.where(mask, x, v.reshape(x.shape))

    def encode(self, x) -> Tensor:
        """(N, C, H, W) -> (N, hidden): p(h_j = 1 | x)."""
        return ops.sigmoid(self.hidden_logits(self._vectors(x)))

    def decode(self, h) -> Tensor:
        """(N, hidden), array or Tensor on the model's device -> (N, C, H, W): p(v_i = 1 | h)."""
        h = check.tensor("h", h, "N", self.hidden_bias.size).astype(self.dtype)
        return ops.sigmoid(self.visible_logits(h)).reshape(-1, *self.image_shape)

    def reconstruct(self, x) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W): decoded from the probabilities of the hidden units."""
        return self.decode(self.encode(x))

    def _independent(self, n, rng, base):
        """(n, D): independent pixels with log-odds ``base``."""
        u = to_device(rng.random((n, base.size), np.float32), self.device)
        return Bernoulli(base).at(u).astype(self.dtype)

    def _vectors(self, x) -> Tensor:
        """(N, C, H, W) of 0 and 1, checked -> (N, D) in the model's dtype"""
        x = check_images(x, self.image_shape, 2).astype(self.dtype)
        return x.reshape(x.shape[0], -1)


RECIPES = {
    "rbm": Recipe(
        RBM,
        {"hidden": 500, "steps": 3, "chains": 256},
        protocol="published",
        steps=(60_000,),
        optimizer=SGD,
        lr=0.3,
        weight_decay=1e-4,
        batch_size=256,
        published="86.34",  # Salakhutdinov and Murray 2008, CD-25, estimated too
    )
}
