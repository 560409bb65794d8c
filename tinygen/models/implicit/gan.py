"""Generative adversarial networks (Goodfellow et al. 2014, arXiv 1406.2661).

A generator G turns noise z into images, and a discriminator D tells them from real ones: a game of two players,

    min_G max_D  E_x[log D(x)] + E_z[log(1 - D(G(z)))].

For the best D it is 2 JS(p || p_G) - log 4, least where the generator's distribution p_G is that of the images. There
is no likelihood: the discriminator replaces it as the measure of how far the samples are from the images.
"""

import copy
import math

import numpy as np

from tinygen import check, ops
from tinygen.backend import to_device
from tinygen.models.images import check_images, check_shape
from tinygen.models.networks import sizes
from tinygen.models.recipe import Recipe
from tinygen.nn import BatchNorm, Conv2d, GroupNorm, Linear, Module, UpConv2d
from tinygen.optim import Adam
from tinygen.tensor import Tensor, enable_grad, grad, no_grad, recording

PENALTY = 10.0  # weight of the gradient penalty, as published


class GAN(Module):
    """The two players, both convolutional (after Radford et al. 2016, arXiv 1511.06434).

    ``image_shape`` (C, H, W), any size; images are real numbers in [0, 1]. ``latent``: dimensions of z ~ N(0, I).
    ``form``: what the players minimize, ``"non-saturating"`` or ``"wasserstein"``, see ``costs``. ``channels``: of the
    discriminator's convolutions, each of which halves the image; the generator has them in reverse.
    Raises ValueError for another form or invalid numbers.

    It has no ``score``: nothing computed from one image says how good the generator is, and the loss says who is
    winning, not how well both play. ``tinygen.samples`` judges samples instead.

    Deviations from the papers: both players move at once and equally often, so that one loss trains them, where the
    Wasserstein form gave its critic five steps for each of the generator's. The discriminator normalizes each image
    by itself, since the gradient penalty needs D(x) to depend on x alone (Gulrajani et al. 2017, section 4); the DCGAN
    normalizes over the batch, as the generator does here over a shard. Convolutions are 3 x 3, and
    a sigmoid makes pixels, which are in [0, 1].
    """

    unit = "cost per image"
    classes = 0

    def __init__(
        self,
        image_shape=(1, 28, 28),
        latent=64,
        form="non-saturating",
        channels=(32, 64, 128),
        *,
        rng: np.random.Generator,
    ):
        self.image_shape, self.latent = check_shape(image_shape), check.count("latent", latent)
        self.form = check.choice("form", form, "non-saturating", "wasserstein")
        channels = check.counts("channels", channels)
        self.generator = Generator(self.image_shape, self.latent, channels, rng=rng)
        self.discriminator = Discriminator(self.image_shape, channels, rng=rng)

    def describe(self):
        return f"image_shape={self.image_shape}, latent={self.latent}, form={self.form!r}"

    def loss(self, x, rng: np.random.Generator, labels=None) -> Tensor:
        """The sum of both costs, whose gradient is for each player that of its own cost."""
        check.no_labels(labels)
        discriminator, generator = self.costs(x, rng)
        return discriminator + generator

    def costs(self, x, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """What the discriminator and the generator minimize, each a mean over the images x and as many G(z).

        With s = D(x) the discriminator's output, the logit of being real, they are, for the form

            non-saturating:  -log sigmoid(s(x)) - log(1 - sigmoid(s(G(z))))    and    -log sigmoid(s(G(z)))
            wasserstein:      s(G(z)) - s(x) + 10 (|ds/dx| - 1)^2              and    -s(G(z)).

        The generator's cost in the first form is the one that the paper recommends in place of log(1 - D) (section 3),
        whose gradient vanishes where D is sure. The second form has s estimate the Wasserstein distance of both
        distributions (Arjovsky et al. 2017), with slopes of 1 on the way between them (Gulrajani et al. 2017, equation
        3).
        """
        x = check_images(x, self.image_shape, grey=True, unit=True).astype(self.dtype)
        made = self.generator(self._noise(x.shape[0], rng), training=True)  # (N, C, H, W)
        constant = made.detach()  # the discriminator's cost has no gradient for the generator
        real, fake = self.discriminator(x), self.discriminator(constant)  # (N,)
        judged = with_constants(self.discriminator)(made)  # and the generator's none for the discriminator
        if self.form == "wasserstein":
            return (fake - real).mean() + PENALTY * self.penalty(x, constant, rng), -judged.mean()
        return (ops.softplus(-real) + ops.softplus(fake)).mean(), ops.softplus(-judged).mean()

    def penalty(self, x, made, rng: np.random.Generator) -> Tensor:
        """The mean of (|ds/dx| - 1)^2 at points drawn between each image and a generated one.

        Its own derivative needs those of derivatives. Source: Gulrajani et al. 2017 (arXiv 1704.00028), algorithm 1.
        """
        u = to_device(check.generator(rng).random((x.shape[0], 1, 1, 1)).astype(self.dtype), self.device)
        recorded = recording()
        with enable_grad():
            between = Tensor(u * x.data + (1 - u) * made.data, requires_grad=True)
            s = self.discriminator(between)
            (slope,) = grad(s.sum(), between, create_graph=recorded)  # ds/dx of each image, (N, C, H, W)
            # 1e-12: the root of 0 has no derivative
            return ((ops.sqrt((slope**2).sum((1, 2, 3)) + 1e-12) - 1) ** 2).mean()

    @no_grad()
    def sample(self, n: int, rng: np.random.Generator, labels=None):
        """(n, C, H, W) array on the model's device, values in (0, 1): G(z) with z ~ N(0, I)."""
        check.no_labels(labels)
        return self.generator(self._noise(check.count("n", n), rng)).data

    def decode(self, z) -> Tensor:
        """(N, latent), array or Tensor on the model's device -> (N, C, H, W): G(z)."""
        return self.generator(check.tensor("z", z, "N", self.latent).astype(self.dtype))

    def _noise(self, n, rng):
        return Tensor(to_device(check.generator(rng).standard_normal((n, self.latent), self.dtype), self.device))


class Generator(Module):
    """z (N, latent) -> images (N, C, H, W) in (0, 1): a linear layer, and upconvolutions of stride 2. Batch
    normalization and ReLU come before each of these."""

    def __init__(self, image_shape, latent, channels, *, rng):
        self.sizes = sizes(image_shape, len(channels))
        self.smallest = (channels[-1], *self.sizes[-1])
        self.into = Linear(latent, math.prod(self.smallest), rng=rng)
        self.norms = [BatchNorm(n) for n in channels[::-1]]
        steps = zip(channels[::-1], (*channels[-2::-1], image_shape[0]))
        self.ups = [UpConv2d(a, b, 3, stride=2, padding=1, rng=rng, gain=2.0) for a, b in steps]

    def forward(self, z, training=False):
        h = self.into(z).reshape(z.shape[0], *self.smallest)
        for norm, up, size in zip(self.norms, self.ups, reversed(self.sizes[:-1])):
            h = up(ops.relu(norm(h, training)), size)
        return ops.sigmoid(h)


class Discriminator(Module):
    """Images (N, C, H, W) -> (N,), the logit of being real: convolutions of stride 2 with leaky ReLU, a linear layer.
    After all convolutions but the first each image is normalized."""

    def __init__(self, image_shape, channels, *, rng):
        steps = zip((image_shape[0], *channels), channels)
        self.convs = [Conv2d(a, b, 3, stride=2, padding=1, rng=rng, gain=2.0) for a, b in steps]
        self.norms = [GroupNorm(1, n) for n in channels[1:]]
        self.out = Linear(channels[-1] * math.prod(sizes(image_shape, len(channels))[-1]), 1, rng=rng)

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = conv(x)
            x = ops.leaky_relu(self.norms[i - 1](x) if i else x, 0.2)
        return self.out(x.reshape(x.shape[0], -1)).reshape(-1)


def with_constants(module: Module) -> Module:
    """The module with its parameters as constants: gradients pass through it to its input, and reach no weight."""
    return copy.deepcopy(module, {id(p): p.detach() for p in module.parameters()})


RECIPES = {
    "gan": Recipe(
        GAN,
        {"latent": 64, "channels": (32, 64, 128)},
        protocol="grey",
        steps=(40_000,),
        optimizer=Adam,
        lr=5e-4,
        options={"betas": (0.5, 0.99)},
        weight_decay=0.0,
        batch_size=64,
        published="Parzen 225",  # Goodfellow et al. 2014, table 1
    ),
    "gan-wasserstein": Recipe(
        GAN,
        {"latent": 64, "form": "wasserstein", "channels": (32, 64, 128)},
        protocol="grey",
        steps=(15_000,),
        optimizer=Adam,
        lr=1e-3,
        options={"betas": (0.5, 0.99)},
        weight_decay=0.0,
        batch_size=64,
    ),
}
