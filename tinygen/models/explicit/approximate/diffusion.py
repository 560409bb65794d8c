"""Denoising diffusion (Ho et al. 2020, arXiv 2006.11239): noise is added to an image in many small steps, and a network
learns to undo each of them.

    q(z_t | x) = N(sqrt(abar_t) x, (1 - abar_t) I),    t = 0 .. T                                     (equation 4)
    loss = |eps - eps_theta(z_t, t)|^2   with   z_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps           (equation 14)
    -log p(x) <= KL(q(z_T | x) || p(z_T)) + sum_t KL(q(z_t-1 | z_t, x) || p(z_t-1 | z_t)) - log p(x | z_0)   (5)

Deviation from the paper: z_0 is not the image itself, but has noise of a sixth of a grey level (Kingma et al. 2021,
arXiv 2107.00630). So every step has the same form, and the image is what z_0 is rounded to.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device, xp
from tinygen.distributions import Categorical, Gaussian
from tinygen.models.base import Model
from tinygen.models.images import check_images, check_shape
from tinygen.models.recipe import Recipe
from tinygen.nn import Conv2d, Embedding, Linear, Module, UpConv2d
from tinygen.tensor import Tensor, no_grad

CHANNELS = (32, 64, 96)  # of the network at each scale
TIMES = 16  # frequencies of the time embedding
EMBEDDED = 128  # its numbers after a linear layer
FIRST = 1 / 6  # standard deviation of the noise in z_0, in grey levels
LAST = -7.0  # log-SNR of z_T with the schedule "log-snr": N(0, I) but for 0.001 of its variance
HIDDEN = 0.1  # share of the labels that training hides


def cosine(steps):
    """abar_1 .. abar_T (Nichol and Dhariwal 2021, arXiv 2102.09672, equation 17, with their limit beta_t <= 0.999)."""
    f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.cumprod(np.maximum(f[1:] / f[:-1], 0.001))


def linear(steps):
    """abar_1 .. abar_T (Ho et al. 2020, section 4): with T = 1,000, beta_t grows evenly from 1e-4 to 0.02."""
    return np.cumprod(1 - np.minimum(np.linspace(0.1, 20, steps) / steps, 0.999))


class Step(NamedTuple):
    """What is known of the steps t (N,) of a batch, on the model's device."""

    signal: Tensor  # sqrt(abar_t), (N, 1, 1, 1)
    noise: Tensor  # sqrt(1 - abar_t), (N, 1, 1, 1)
    known: Tensor  # 1 where the network is told the label, else 0, (N, 1)
    times: Tensor  # sines and cosines of t, (N, 2 TIMES)


class Terms(NamedTuple):
    """The three terms of minus the bound, each (N,) in nats."""

    prior: Tensor  # KL(q(z_T | x) || N(0, I)), exact
    steps: Tensor  # sum over t of KL(q(z_t-1 | z_t, x) || p(z_t-1 | z_t)), estimated with one t
    decoder: Tensor  # -log p(x | z_0), estimated with one z_0

    @property
    def total(self) -> Tensor:
        """(N,): the bound, which in expectation is at most log p(x)."""
        return -(self.prior + self.steps + self.decoder)


class Diffusion(Model):
    """z_T ~ N(0, I), then T = ``steps`` times z_t-1 ~ p(z_t-1 | z_t), then x ~ p(x | z_0).

    p(z_t-1 | z_t) = q(z_t-1 | z_t, x) at the x that the network's estimate of the noise implies. Both are Gaussians of
    the same variance (beta-tilde of Ho et al. 2020, section 3.2), and their KL is a weighted squared error.

    ``image_shape`` (C, H, W), any size; images are whole numbers 0 .. ``levels`` - 1. ``schedule``: ``"cosine"`` and
    ``"linear"`` are the papers'. With ``"log-snr"`` log abar_t / (1 - abar_t) falls evenly (Kingma et al. 2021): all
    steps count the same in the bound, so that the loss is the bound's sum over t but for a factor, and for the clipping
    in ``denoised``. The others weight it towards large noise, which matters to the eye more than to the likelihood.
    ``channels``: of the network at each scale. With ``classes`` it is p(x | label), and guidance is possible. Raises
    ValueError for another schedule or invalid numbers.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=256,
        steps=1000,
        schedule="log-snr",
        channels=CHANNELS,
        classes=0,
        *,
        rng: np.random.Generator,
    ):
        self.image_shape, self.levels = check_shape(image_shape), check.count("levels", levels, 2)
        self.steps, self.classes = check.count("steps", steps), check.count("classes", classes, 0)
        self.schedule = check.choice("schedule", schedule, "log-snr", "cosine", "linear")
        self.edge = 1 - 1 / self.levels  # images are scaled to -edge .. edge; grey levels are 2 / levels apart
        first = math.log(1 / (FIRST * 2 / self.levels) ** 2 - 1)
        if schedule == "log-snr":
            self.log_snr = np.linspace(first, LAST, self.steps + 1)  # of z_0 .. z_T: log abar_t / (1 - abar_t)
        else:
            abar = (cosine if schedule == "cosine" else linear)(self.steps)
            self.log_snr = np.minimum(first, [first, *np.log(abar / (1 - abar))])
        self.octaves = math.ceil(math.log2(self.levels))
        c, features = self.image_shape[0], 3 + 2 * self.octaves
        self.network = UNet(features * c, c, check.counts("channels", channels), self.classes, rng=rng)

    def describe(self):
        return f"image_shape={self.image_shape}, levels={self.levels}, steps={self.steps}, schedule={self.schedule}"

    # -- the two processes

    def at(self, t, known=True) -> Step:
        """The steps t, whole numbers (N,) on the host; ``known``: whether the network is told each image's label."""
        t = np.asarray(t)[:, None]
        abar = 1 / (1 + np.exp(-self.log_snr[t]))  # (N, 1)
        angles = t / self.steps * np.geomspace(1, 500, TIMES)
        known = np.reshape(known, (-1, 1)) * np.ones_like(abar)
        columns = np.concatenate([abar**0.5, (1 - abar) ** 0.5, known, np.sin(angles), np.cos(angles)], 1)
        row = Tensor(to_device(columns.astype(self.dtype), self.device))  # together, since each transfer costs time
        return Step(row[:, :1].reshape(-1, 1, 1, 1), row[:, 1:2].reshape(-1, 1, 1, 1), row[:, 2:3], row[:, 3:])

    def noised(self, x, at: Step, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """z_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps and eps, for images x (N, C, H, W) scaled to -edge .. edge."""
        eps = self._normal(x.shape, rng)
        return at.signal * x + at.noise * eps, eps

    def eps(self, z, at: Step, labels=None) -> Tensor:
        """eps_theta(z_t, t): z_t (N, C, H, W) -> (N, C, H, W)."""
        # A network that sees z alone cannot tell grey levels apart. It gets sines of z as well, down to periods of one
        # level (Kingma et al. 2021), and the eps that would follow if the pixel were black, or white, clipped.
        ends = [0.3 * ops.clip((z - end * at.signal) / at.noise, -4, 4) for end in (-self.edge, self.edge)]
        waves = [f(z * (math.pi * 2**k)) for k in range(1, self.octaves + 1) for f in (ops.sin, ops.cos)]
        # For pixels x ~ N(0, 1) E[eps | z_t] is sqrt(1 - abar_t) z_t; the network learns what is to be added.
        return at.noise * z + self.network(ops.concatenate([z, *ends, *waves], 1), at, labels)

    def denoised(self, z, at: Step, labels=None, guidance=1.0) -> Tensor:
        """The image that eps_theta leaves: (z_t - sqrt(1 - abar_t) eps_theta) / sqrt(abar_t), within -edge .. edge."""
        eps = self.eps(z, at, labels)
        if guidance != 1:
            without = self.eps(z, at._replace(known=at.known * 0), labels)
            eps = without + guidance * (eps - without)
        return ops.clip((z - at.noise * eps) / at.signal, -self.edge, self.edge)

    def decoder(self, z) -> Categorical:
        """p(x | z_0), proportional to q(z_0 | x) over the grey levels x of each number (Kingma et al. 2021).

        z_0 (N, C, H, W) -> distribution over (N, C, H, W).
        """
        at = self.at(np.zeros(1, int))
        x = (xp(z.data).arange(self.levels) + 0.5).astype(self.dtype) * self.dtype.type(2 / self.levels) - 1  # scaled
        error = (z.reshape(*z.shape, 1) - at.signal * Tensor(x)) / at.noise  # (N, C, H, W, levels)
        return Categorical(-0.5 * error**2, axis=-1)

    # -- training

    def loss(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """Mean over the images of |eps - eps_theta(z_t, t)|^2, each with one t: squared noise, not nats.

        Of the labels a tenth is hidden, so that eps_theta without labels is learned too (Ho and Salimans 2022).
        """
        x, labels = self._checked(x, labels)
        known = check.generator(rng).random(x.shape[0]) >= HIDDEN if self.classes else True
        at = self.at(self._times(x.shape[0], rng), known)
        z, eps = self.noised(self._scaled(x), at, rng)
        return ((eps - self.eps(z, at, labels)) ** 2).sum((1, 2, 3)).mean()

    # -- the bound

    def bound(self, x, rng: np.random.Generator, labels=None) -> Terms:
        """The three terms of each image. The sum over t is estimated, without bias, with one t for each image."""
        whole, labels = self._checked(x, labels)
        n, x = whole.shape[0], self._scaled(whole)
        steps = self.steps * self.kl(whole, self._times(n, rng), rng, labels)
        first, last = self.at(np.zeros(n, int)), self.at(np.full(n, self.steps))
        prior = Gaussian(last.signal * x, 2 * ops.log(last.noise)).kl().sum((1, 2, 3))
        z, _ = self.noised(x, first, rng)
        log_p = self.decoder(z).log_prob(whole.data.astype(np.int64)).sum((1, 2, 3))
        return Terms(prior, steps, -log_p)

    def kl(self, x, t, rng: np.random.Generator, labels=None) -> Tensor:
        """(N,): KL(q(z_t-1 | z_t, x) || p(z_t-1 | z_t)) of each image, with one z_t, in nats.

        ``t``: the step of each image, whole numbers (N,) on the host, 1 .. T. Summed over all t it is the term
        ``steps`` of the bound, with much less variance. Raises ValueError for other t.
        """
        x, labels = self._checked(x, labels)
        t = check.labels("t", t, self.steps + 1, x.shape[:1])
        if t.min() < 1:
            raise ValueError("t: got 0, needs whole numbers from 1")
        x, at, snr = self._scaled(x), self.at(t), np.exp(self.log_snr)
        z, _ = self.noised(x, at, rng)
        # KL = (SNR_t-1 - SNR_t) |x - x_theta|^2 / 2  with SNR = abar / (1 - abar)      (Kingma et al. 2021, section 4)
        weight = Tensor(to_device((0.5 * (snr[t - 1] - snr[t])).astype(self.dtype), self.device))
        return weight * ((x - self.denoised(z, at, labels)) ** 2).sum((1, 2, 3))

    # -- sampling

    def sample(self, n: int, rng: np.random.Generator, labels=None, *, steps=None, eta=1.0, guidance=1.0):
        """(n, C, H, W) array on the model's device, of whole numbers: uint8 or, if levels > 256, int64.

        Options are those of ``chain``. Of p(x | z_0) the likeliest x is taken, the grey level nearest to z_0; a draw
        would differ in 3 of 1,000 numbers, by one level.
        """
        (z,) = deque(self.chain(n, rng, labels, steps=steps, eta=eta, guidance=guidance), maxlen=1)  # only z_0 is kept
        check.no_nan("images", z)
        x = xp(z).floor((z / math.sqrt(1 / (1 + math.exp(-self.log_snr[0]))) + 1) * (self.levels / 2))
        return xp(x).clip(x, 0, self.levels - 1).astype(np.uint8 if self.levels <= 256 else np.int64)

    def chain(self, n: int, rng: np.random.Generator, labels=None, *, steps=None, eta=1.0, guidance=1.0):
        """Yields z_T, ..., z_0, arrays (n, C, H, W) on the model's device; z_0 is an image scaled to -edge .. edge,
        with noise of a sixth of a grey level.

        ``steps``: their number, by default T; fewer skip t evenly. ``eta``: 1 draws from p(z_t-1 | z_t), 0 adds no
        noise after z_T (Song et al. 2021, arXiv 2010.02502, equations 12 and 16). ``guidance``: how much stronger the
        label acts, eps_theta(z) + guidance (eps_theta(z, label) - eps_theta(z)); 0 ignores labels, 1 changes nothing
        (Ho and Salimans 2022, arXiv 2207.12598, equation 6, where it is 1 + w).
        Raises ValueError for n < 1, more than T steps, eta outside 0 .. 1, or guidance of a model without classes.
        """
        n, rng = check.count("n", n), check.generator(rng)
        steps = self.steps if steps is None else check.count("steps", steps)
        if steps > self.steps:
            raise ValueError(f"steps: got {steps}, needs at most {self.steps}, those of the model")
        eta, guidance = check.number("eta", eta, "[0, 1]"), check.number("guidance", guidance, "[0, inf)")
        if guidance != 1 and not self.classes:
            raise ValueError("guidance: the model was built without classes")
        labels = check.classes(labels, self.classes, n)
        times = np.linspace(self.steps, 0, steps + 1).round().astype(int)
        z = self._normal((n, *self.image_shape), rng)
        yield z.data
        for t, s in zip(times, times[1:]):
            at, to = self.at(np.full(n, t)), self.at(np.full(n, s))
            with no_grad():  # in each step anew, since the caller may record between them
                x = self.denoised(z, at, labels, guidance)
            eps = (z - at.signal * x) / at.noise
            # z_s = sqrt(abar_s) x + sqrt(1 - abar_s) (sqrt(1 - fresh) eps + sqrt(fresh) new noise)
            fresh = -(eta**2) * math.expm1(self.log_snr[t] - self.log_snr[s])
            if eta:
                eps = math.sqrt(1 - fresh) * eps + math.sqrt(fresh) * self._normal(z.shape, rng)
            z = to.signal * x + to.noise * eps
            yield z.data.copy()

    # -- the parts

    def _checked(self, x, labels):
        """Images of whole numbers as a Tensor, and the labels."""
        x = check_images(x, self.image_shape, self.levels)
        return x, check.classes(labels, self.classes, x.shape[0])

    def _scaled(self, x):
        return (x.astype(self.dtype) + 0.5) * (2 / self.levels) - 1

    def _times(self, n, rng):
        """(n,) steps t, each uniform on 1 .. T, and together spread evenly, which makes their mean more exact."""
        u = (check.generator(rng).random() + np.arange(n) / n) % 1
        return 1 + (u * self.steps).astype(int)

    def _normal(self, shape, rng):
        eps = check.generator(rng).standard_normal(shape, np.float64 if self.dtype == np.float64 else np.float32)
        return Tensor(to_device(eps.astype(self.dtype), self.device))


# -- the network


class UNet(Module):
    """One residual block at each scale on the way down, and one on the way up: (N, inputs, H, W) -> (N, outputs, H, W),
    at first zero. Strided convolutions halve height and width, upconvolutions double them, and the result on the way
    down is added on the way up.

    Source: Ronneberger et al. 2015 (arXiv 1505.04597), figure 1. Deviations from Ho et al. 2020, appendix B: no
    normalization, no attention, one block at a scale, skip connections that are added, and an embedding that scales and
    shifts channels.
    """

    def __init__(self, inputs, outputs, channels, classes=0, *, rng):
        self.time = Linear(2 * TIMES, EMBEDDED, rng=rng, gain=2.0)
        self.label = Embedding(classes, EMBEDDED, rng=rng) if classes else None
        self.first = Conv2d(inputs, channels[0], 3, padding=1, rng=rng)
        self.down = [TimedBlock(c, rng=rng) for c in channels]
        self.up = [TimedBlock(c, rng=rng) for c in channels]
        pairs = list(zip(channels, channels[1:]))
        self.smaller = [Conv2d(a, b, 3, stride=2, padding=1, rng=rng) for a, b in pairs]
        self.larger = [UpConv2d(b, a, 3, stride=2, padding=1, rng=rng) for a, b in pairs]
        self.last = Conv2d(channels[0], outputs, 3, padding=1, rng=rng, gain=0.0)

    def forward(self, x, at: Step, labels=None):
        e = self.time(at.times)
        if labels is not None:
            e = e + at.known * self.label(labels)
        e = ops.relu(e)  # (N, EMBEDDED)
        h, kept = self.first(x), []
        for i, block in enumerate(self.down):
            h = block(self.smaller[i - 1](h) if i else h, e)
            kept.append(h)
        for i in reversed(range(len(self.up))):
            h = self.up[i](h, e)
            if i:
                h = kept[i - 1] + self.larger[i - 1](h, kept[i - 1].shape[2:])
        return self.last(ops.relu(h))


class TimedBlock(Module):
    """h + conv(ReLU(scale conv(ReLU(h)) + shift)), 3x3, initially the identity: (N, channels, H, W) -> the same.

    Scale and shift of each channel are linear in the embedding (N, EMBEDDED) of time and label.
    """

    def __init__(self, channels, *, rng):
        self.first = Conv2d(channels, channels, 3, padding=1, rng=rng, gain=2.0)
        self.affine = Linear(EMBEDDED, 2 * channels, rng=rng, gain=0.0)
        self.second = Conv2d(channels, channels, 3, padding=1, rng=rng, gain=0.0)

    def forward(self, h, embedding):
        scale, shift = ops.split(self.affine(embedding).reshape(h.shape[0], -1, 1, 1), 2, axis=1)
        return h + self.second(ops.relu((1 + scale) * self.first(ops.relu(h)) + shift))


RECIPES = {
    "diffusion": Recipe(
        Diffusion,
        {},
        protocol="8-bit",
        steps=(30_000,),
        lr=1e-2,
        batch_size=64,
    )
}
