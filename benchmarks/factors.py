"""Disentangling: VAE, beta-VAE and beta-TCVAE on sprites with known factors, judged by the mutual information gap.

    python benchmarks/factors.py                              # 15 trainings, of four minutes of one core each
    python benchmarks/factors.py --seeds 2 --only beta-tcvae  # a part of them; writes nothing

All have the networks and the training of the recipe ``beta-tcvae`` and differ in their loss alone. A run that was cut
off goes on from its checkpoint in out/factors.
"""

import argparse
from hashlib import sha256
from pathlib import Path

import numpy as np
from likelihood import codes, schedule, sets
from machine import description
from report import write_section

from tinygen import no_grad
from tinygen.factors import FACTORS, mutual_information_gap, sprites
from tinygen.models import RECIPES, TCVAE, VAE
from tinygen.training import fit

CHECKPOINTS = Path(__file__).parent.parent / "out" / "factors"
RECIPE = RECIPES["beta-tcvae"]
BETA = 4.0  # of the beta-VAE
SEEDS = 5
CONTENDERS = {
    "vae": (VAE, {"beta": 1.0}),
    "beta-vae": (VAE, {"beta": BETA}),
    "beta-tcvae": (TCVAE, {key: RECIPE.settings[key] for key in ("beta", "images")}),
}
SHARED = {key: value for key, value in RECIPE.settings.items() if key not in ("beta", "images")}
TEXT = """
Means and standard deviations over the seeds of the weights, the order of the images and the noise. MIG: the mutual
information gap (Chen et al. 2018, section 4), from 0 to 1, of one draw of q(z|x) for each of the 61,440 sprites; beside
it the gap of each factor. Reconstruction, -log p(x|z), and KL are in nats per image, on the test images.
""".strip()


def build(name, seed):
    model, own = CONTENDERS[name]
    return model(**SHARED, **own, rng=np.random.default_rng([seed, 0]))


def checkpoint(name, seed):
    """Its name depends on the recipe, so that no run resumes one with another recipe."""
    recipe = repr((SHARED, CONTENDERS[name], RECIPE)).encode()
    return CHECKPOINTS / f"{name}-{seed}-{sha256(recipe).hexdigest()[:8]}.npz"


def train(name, seed, images):
    """The trained model, and the minutes that its training took."""
    model = build(name, seed)
    record = fit(
        model,
        images,
        steps=sum(RECIPE.steps),
        optimizer=RECIPE.optimizer(model.parameters(), RECIPE.lr, weight_decay=RECIPE.weight_decay),
        rng=np.random.default_rng([seed, 1]),
        batch_size=RECIPE.batch_size,
        schedule=schedule(RECIPE.steps),
        averaging=RECIPE.averaging,
        validate_every=sum(RECIPE.steps),
        checkpoint=checkpoint(name, seed),
    )
    return model, record[-1]["seconds"] / 60


@no_grad()
def figures(model, tested):
    """The MIG, the gap of each factor, and reconstruction and KL in nats per image, as one array."""
    made, rng = sprites(), np.random.default_rng(0)
    gaps = mutual_information_gap(codes(model, made.images, rng), made.factors)
    terms = [model.bound(tested[i : i + 100], rng) for i in range(0, len(tested), 100)]
    nats = [np.concatenate([getattr(t, key).data for t in terms]).mean() for key in ("reconstruction", "kl")]
    return np.array([gaps.mean(), *gaps, -nats[0], nats[1]])


def row(name, found, minutes):
    """A line of the table from the figures (seeds, 8)."""
    cells = [f"{mean:.{2 if i else 3}f}" for i, mean in enumerate(found.mean(0))]
    if len(found) > 1:
        cells = [f"{cell} ± {s:.{2 if i else 3}f}" for i, (cell, s) in enumerate(zip(cells, found.std(0, ddof=1)))]
    beta = CONTENDERS[name][1]["beta"]
    return f"| {name} | {beta:g} | {len(found)} | {' | '.join(cells)} | {np.mean(minutes):.1f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings of each model")
    parser.add_argument("--only", choices=CONTENDERS, help="only this model")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds: got {options.seeds}, needs at least 1")
    images, _, tested = sets(RECIPE.protocol)
    columns = ["model", "beta", "seeds", "MIG", *FACTORS, "reconstruction", "KL", "minutes"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in [options.only] if options.only else CONTENDERS:
        found, minutes = [], []
        for seed in range(options.seeds):
            model, taken = train(name, seed, images)
            found.append(figures(model, tested))
            minutes.append(taken)
            print(f"{name}, seed {seed}: MIG {found[-1][0]:.3f}, {taken:.1f} minutes", flush=True)
        lines.append(row(name, np.array(found), minutes))
    settings = ", ".join(f"{key}={value!r}" for key, value in SHARED.items())
    training = (
        f"Built with `{settings}`; {sum(RECIPE.steps):,} steps of {RECIPE.batch_size} images, "
        f"{RECIPE.optimizer.__name__} at {RECIPE.lr:g}, averaging {RECIPE.averaging:g}; on {description('numpy')}."
    )
    print("\n".join(lines))
    if options.only is None and options.seeds == SEEDS:
        write_section("Disentangling", "\n\n".join([TEXT, "\n".join(lines), training]))


if __name__ == "__main__":
    main()
