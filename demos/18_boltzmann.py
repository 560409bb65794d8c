"""A restricted Boltzmann machine: its filters, its Markov chains, and how well its Z is estimated. About a minute.

An RBM gives p(v) = exp(-F(v)) / Z at once but for Z, a sum over all images. With 12 hidden units the sum over their
4,096 values is exact, so the demo can check the two things that large RBMs rest on. Learning: contrastive divergence
(CD-k) starts k rounds of Gibbs sampling at the images, persistent chains (PCD) go on from step to step; both are
plotted by the exact nats per image. Likelihood: annealed importance sampling, which from the one end gives too few nats
with few temperatures, and from the other end, begun at exact samples, too many. The one end has two starts, of which
the larger Z counts.

Then the RBM with 500 hidden units that ships: filters of some units, and chains that begin at noise and at digits.
"""

import numpy as np
from common import TRAIN, options, run, save, trained
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad, ops
from tinygen.backend import to_device, to_host
from tinygen.distributions import Bernoulli
from tinygen.models import RBM
from tinygen.optim import SGD
from tinygen.plotting import draw_images
from tinygen.training import fit

CONFIG = {
    "steps": (1000, "of learning for each small RBM", 10, 1_000_000),
    "runs": (30, "of annealing for each number of temperatures", 2, 10_000),
    "rounds": (3000, "of Gibbs sampling in the chains shown", 1, 1_000_000),
    **TRAIN,
}
HIDDEN = 12  # few enough to enumerate
WAYS = {  # of learning: Gibbs rounds for each step, and persistent chains
    "CD-1": {"steps": 1, "chains": 0},
    "CD-10": {"steps": 10, "chains": 0},
    "PCD": {"steps": 1, "chains": 100},
}
TEMPERATURES = 1, 3, 10, 30, 100, 300
CHAINS = 10  # in a run of annealing


def learn(way, images, tested, config):
    """A small RBM, the steps, and the exact nats per test image after them."""
    rng = np.random.default_rng(config.seed)
    model = RBM(hidden=HIDDEN, **WAYS[way], rng=rng).to(config.device)
    found = []

    @no_grad()
    def note(row):
        found.append((row["step"], -model.log_prob(to_device(tested, config.device)).mean().item()))

    fit(
        model,
        images,
        steps=config.steps,
        optimizer=SGD(model.parameters(), 0.1),
        rng=rng,
        batch_size=100,
        schedule=lambda done: 1 - done,
        validate_every=max(1, config.steps // 20),
        callback=note,
        workers=1,
        progress=False,
    )
    return model, np.array(found).T


@no_grad()
def exact_samples(model, n, rng):
    """(n, C, H, W): v ~ p(v | h) for h drawn from p(h), which is enumerated."""
    units = model.hidden_bias.size
    h = to_device((np.arange(2**units)[:, None] >> np.arange(units) & 1).astype(model.dtype), model.device)
    p = ops.softmax(model.log_p_hidden(Tensor(h)), 0).numpy().astype(float)
    drawn = to_device(rng.choice(len(p), n, p=p / p.sum()), model.device)
    return Bernoulli(model.visible_logits(Tensor(h[drawn]))).sample(rng).reshape(n, *model.image_shape)


def chains(model, start, rounds, rng):
    """Chains from the images ``start`` after each of ``rounds``: (len(rounds), N, C, H, W)"""
    v, seen = start.reshape(len(start), -1), []
    for i in range(max(rounds) + 1):
        if i in rounds:
            seen.append(to_host(v).reshape(start.shape))
        v = model.gibbs(v, rng)
    return np.stack(seen)


def draw(filters, seen, rounds, curves, gaps):
    """``gaps``: {end: (temperatures, runs)}, estimates of -log p less the exact ones."""
    figure = Figure(figsize=(13, 9), layout="constrained")
    (left, right), (lower_left, lower_right) = figure.subplots(2, 2, height_ratios=(1.25, 1))
    grey = np.clip(0.5 + filters / (2 * np.quantile(np.abs(filters), 0.995)), 0, 1)
    draw_images(left, grey, 10, "weights of 100 hidden units (black: ink turns the unit on; grey: zero)")
    rows = ["from", "noise", "", "", "from", "digits", "", ""]
    shown = seen.swapaxes(0, 1).reshape(-1, *seen.shape[2:])
    draw_images(right, shown, len(rounds), "chains after so many rounds of Gibbs sampling", rows, rounds)
    for name, (steps, nats) in curves.items():
        lower_left.plot(steps, nats, "o-", markersize=3, label=name)
    lower_left.set(xlabel="steps", ylabel="exact nats per test image")
    lower_left.set_title(f"learning an RBM with {HIDDEN} hidden units", fontsize=9)
    lower_left.legend()
    for name, gap in gaps.items():
        lower_right.errorbar(TEMPERATURES, gap.mean(1), gap.std(1), marker="o", capsize=4, label=name)
    lower_right.axhline(0, color="0.5", linestyle=":")
    lower_right.set(xscale="log", xlabel="temperatures", ylabel="estimated less exact nats per image")
    lower_right.set_title(
        f"annealed importance sampling, {CHAINS} chains (bars: standard deviation of a run)", fontsize=9
    )
    lower_right.legend()
    return figure


def main():
    config = options(__doc__, CONFIG)
    large = trained("rbm", config)  # first, since it may be missing
    rng, digits = np.random.default_rng(config.seed), data.digits()
    images, tested = (data.binarize_static(x, 0) for x in (digits.train_images, digits.test_images))

    small, curves = {}, {}
    print(f"an RBM with {HIDDEN} hidden units after {config.steps} steps, exact nats per test image:")
    for way in WAYS:
        small[way], curves[way] = learn(way, images, tested, config)
        print(f"  {way:<6} {curves[way][1, -1]:8.2f}")

    model, gaps = small["PCD"], {"from independent pixels, the larger of two starts": [], "from exact samples": []}
    with no_grad():
        exact = model.exact_log_z().item()
    print("log Z estimated by annealed importance sampling, less the exact one (standard deviation of a run):")
    print("temperatures" + "".join(f"{name:>52}" for name in gaps))
    for temperatures in TEMPERATURES:
        for name, found in gaps.items():
            ends = [exact_samples(model, CHAINS, rng) if "exact" in name else None for _ in range(config.runs)]
            found.append([model.log_z(rng, temperatures, CHAINS, end).value - exact for end in ends])
        last = [np.array(found[-1]) for found in gaps.values()]
        print(f"{temperatures:12}" + "".join(f"{gap.mean():41.2f} ({gap.std():8.2f})" for gap in last))

    estimate = large.log_z(rng)
    with no_grad():
        nats = large.free_energy(to_device(tested, config.device)).mean().item() + estimate.value
    units = large.hidden_bias.size
    print(f"{units} hidden units: an estimate of {nats:.2f} nats per test image; log Z +- {estimate.error:.2f}")

    rounds = [r for r in (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000) if r <= config.rounds]
    noise = rng.integers(0, 2, (4, *large.image_shape))
    start = to_device(np.concatenate([noise, tested[:4]]).astype(np.float32), config.device)
    strongest = np.argsort(-(large.weight.numpy() ** 2).sum(1))[:100]
    filters = large.weight.numpy()[strongest].reshape(-1, *large.image_shape)
    gaps = {name: np.array(found) for name, found in gaps.items()}
    figure = draw(filters, chains(large, start, rounds, rng), rounds, curves, gaps)
    save(figure, config.out, "18_boltzmann")


if __name__ == "__main__":
    run(main)
