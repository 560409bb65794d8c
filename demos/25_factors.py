"""Known factors: what each dimension of a code says about shape, scale, orientation, x and y. Ten seconds.

The sprites are made from five independent factors, and a beta-TCVAE (Chen et al. 2018) has seen the images alone. Its
loss asks for independent dimensions of z, in the hope that each then holds one factor. The traversals show whether it
does: a row moves one dimension of z from -2 to 2, the others stay. The matrix measures it: the share of a factor's
entropy that a dimension tells. The mutual information gap (MIG) is the difference between the two largest shares of a
row, averaged over the factors. Beside it stands the MIG of the same codes after a random rotation: they tell as much
together, but every dimension mixes all factors. A square looks the same after a quarter of a turn, and an ellipse after
half of one, so no code can tell all of the orientation.
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.figure import Figure

from tinygen import no_grad
from tinygen.backend import to_device
from tinygen.factors import FACTORS, entropies, mutual_information, mutual_information_gap, sprites
from tinygen.plotting import draw_images

CONFIG = {"images": (20000, "sprites that are encoded", 100, 61440), **TRAIN}
STEPS, SEEN = 10, (2, 2, 3, 7, 7)  # images of a row; the sprite whose factors are moved, a heart


@no_grad()
def codes(vae, images, rng):
    """A draw of q(z|x) for each image: (N, latent), on the host."""
    parts = np.array_split(images, -(-len(images) // 200))
    return np.concatenate([vae.encode(to_device(part, vae.device)).rsample(rng).numpy() for part in parts])


def moved(images):
    """(5 STEPS, 1, 32, 32): for each factor the sprites with its values spread over its range, the others as SEEN."""
    grid, rows = images.reshape(*FACTORS.values(), 1, 32, 32), []
    for k, values in enumerate(FACTORS.values()):
        for value in np.arange(STEPS) * values // STEPS:
            rows.append(grid[(*SEEN[:k], value, *SEEN[k + 1 :])])
    return np.array(rows)


@no_grad()
def traversals(vae, image, order):
    """(STEPS len(order), 1, 32, 32): from the code of an image, each of these dimensions from -2 to 2."""
    z = vae.encode(to_device(image[None], vae.device)).mean.numpy()
    z = np.repeat(z, STEPS * len(order), axis=0)
    z[np.arange(len(z)), np.repeat(order, STEPS)] = np.tile(np.linspace(-2, 2, STEPS), len(order))
    return vae.decode(to_device(z, vae.device)).numpy()


def turned(z, rng):
    """The codes with all dimensions scaled to variance 1, and rotated at random."""
    return (z / z.std(0)) @ np.linalg.qr(rng.standard_normal((z.shape[1], z.shape[1])))[0]


def draw(varied, decoded, shares, order, gaps):
    """Sprites and traversals, rows of STEPS images, white on black; (5, latent) shares of entropy, columns in order."""
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    draw_images(left, 1 - varied, STEPS, "sprites: one factor moved, the others not", list(FACTORS))
    draw_images(middle, 1 - decoded, STEPS, "decoded: one z moved from -2 to 2", [f"z[{j}]" for j in order])
    right.imshow(shares[:, order], cmap="Blues", vmin=0, vmax=1)
    for (k, j), share in np.ndenumerate(shares[:, order]):
        right.text(
            j, k, f"{share:.2f}", ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black"
        )
    right.set_xticks(range(len(order)), [f"z[{j}]" for j in order], fontsize=8)
    right.set_yticks(range(len(FACTORS)), [f"{name}\ngap {gap:.2f}" for name, gap in zip(FACTORS, gaps)], fontsize=8)
    right.set_title(f"share of a factor's entropy that a z tells; MIG {gaps.mean():.2f}", fontsize=9)
    return figure


def main():
    config = options(__doc__, CONFIG)
    vae, rng, made = trained("beta-tcvae", config), np.random.default_rng(config.seed), sprites()
    chosen = rng.permutation(len(made.images))[: config.images]
    known = made.factors[chosen]
    z = codes(vae, made.images[chosen], rng)
    information, entropy = mutual_information(z, known), entropies(known)
    gaps = mutual_information_gap(z, known)
    print("factor       entropy   best z   tells   second z   tells   gap   (nats)")
    for name, h, row, gap in zip(FACTORS, entropy, information, gaps):
        second, best = np.argsort(row)[-2:]
        print(f"{name:11} {h:8.2f} {best:8} {row[best]:7.2f} {second:10} {row[second]:7.2f} {gap:5.2f}")
    mixed = mutual_information_gap(turned(z, rng), known).mean()
    print(f"MIG {gaps.mean():.2f}; of the same codes, rotated at random, {mixed:.2f}")
    shares = information / entropy[:, None]
    order = np.argsort(-shares.max(0))
    heart = made.images[np.ravel_multi_index(SEEN, tuple(FACTORS.values()))]
    save(draw(moved(made.images), traversals(vae, heart, order), shares, order, gaps), config.out, "25_factors")


if __name__ == "__main__":
    run(main)
