"""Real NVP: a flow of affine couplings at several scales (Dinh et al. 2017, arXiv 1605.08803)."""

import numpy as np

from tinygen import check
from tinygen.models.explicit.tractable.flow import Coupling, Flow, SoftUniform, Squeeze, coupling_network
from tinygen.models.explicit.tractable.nice import Scaling
from tinygen.models.recipe import Recipe


class RealNVP(Flow):
    """At each scale, ``couplings`` whose masks are checkerboards, and as many whose masks are channels; then half of
    the channels leaves (section 3.6). Successive couplings change the two halves alternately.

    ``image_shape`` (C, H, W); ``levels`` and ``dequantization`` as in ``Flow``; ``scales``: at most so many, fewer
    where height or width is odd before; ``hidden``, ``blocks``: channels and residual blocks of the couplings'
    networks. Where height or width is odd at first, and for vectors, there is one scale, in which all masks are
    checkerboards. Raises ValueError for a number that is too small.

    Deviations from the paper: the squeeze comes first, so a checkerboard is the channels (1, 0, 0, 1) of each square,
    and the networks see a quarter of the positions; z is softly uniform; in place of batch normalization there is one
    learned scale for each number, before all; see ``ConvNet`` too.
    """

    def __init__(
        self,
        image_shape=(1, 28, 28),
        levels=256,
        scales=2,
        couplings=3,
        hidden=48,
        blocks=1,
        dequantization="uniform",
        *,
        rng: np.random.Generator,
    ):
        super().__init__(image_shape, levels, check.count("scales", scales), dequantization, rng=rng)
        couplings, hidden = check.count("couplings", couplings), check.count("hidden", hidden)
        blocks = check.count("blocks", blocks, 0)
        self.scales = []
        for c, h, w in self.shapes:
            squeezed = (c, h, w) != self.image_shape
            if squeezed:
                squares = np.tile([1, 0, 0, 1], c // 4).reshape(c, 1, 1)  # upper left and lower right pixels
                first = (np.arange(c) < c // 2).reshape(c, 1, 1)
            else:
                squares = first = np.indices((c, h, w)).sum(0) % 2
            # The last mask is ``first`` itself: the last coupling changes what leaves, as a function of what stays.
            masks = [m if i % 2 else 1 - m for m in (squares, first) for i in range(couplings, 0, -1)]
            networks = [coupling_network((c, h, w), hidden, blocks, rng=rng) for _ in masks]
            self.scales.append([Squeeze()] * squeezed + [Coupling(m, f) for m, f in zip(masks, networks)])
        self.scales[0].insert(0, Scaling(self.image_shape))
        self.prior = SoftUniform(np.prod(self.image_shape))


RECIPES = {
    "realnvp": Recipe(
        RealNVP,
        {},
        protocol="8-bit",
        steps=(30_000,),
        lr=5e-3,
        published="1.06",  # Grathwohl et al. 2019, table 2
    )
}
