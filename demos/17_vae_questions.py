"""What a VAE leaves open: mixtures as prior and posterior, discrete codes, classes, KL warm-up. About a minute.

- Prior: where no image's code lies, N(0, I) still has mass. A learned mixture of Gaussians moves it to the codes.
- Posterior: p(z|x) of an image may have several modes. A Gaussian q covers one or all; a mixture can follow them.
- Discrete codes: z of 30 one-hot vectors, learned with the Gumbel-softmax relaxation, in the VAE that ships. Each has
  eight values to look at.
- Classes: p(x|z, class). Decoded with each class, one z keeps what is left to say of a digit: slant, width, stroke.
- KL warm-up: beta rises from 0 to 1 in the first half of training, so that dimensions of z come into use before the KL
  term switches them off. One is active here if q tells more than 0.1 nats in it: its KL, averaged over digits.
The first two have a z of two dimensions, which can be drawn. All others learn from 4,500 digits.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import Tensor, data, no_grad
from tinygen.backend import to_device, to_host
from tinygen.models import VAE, MixturePosteriorVAE, MixturePriorVAE
from tinygen.optim import Adam, cosine
from tinygen.plotting import draw_images
from tinygen.training import fit
from tinygen.weights import pretrained

CONFIG = {
    "steps": (1000, "of training for each model, with 16 digits each"),
    "components": (10, "of the mixture that is the prior"),
}
ACTIVE = 0.1  # nats
GRID = np.linspace(-5, 5, 101, dtype=np.float32)
PLANE = np.stack(np.meshgrid(GRID, GRID), -1).reshape(-1, 2)  # z[0] to the right, z[1] upwards


def train(model, config, anneal=None, labels=None):
    """Train a model on the digits. Returns it."""
    fit(
        model,
        data.digits().train_images,
        labels=labels,
        steps=config.steps,
        batch_size=16,
        optimizer=Adam(model.parameters(), lr=0.004),
        rng=np.random.default_rng(config.seed),
        prepare=data.binarize_dynamic,
        schedule=cosine,
        anneal=anneal,
        averaging=0.99,
    )
    return model


@no_grad()
def log_posterior(model, x):
    """log p(x, z) of one image (1, C, H, W) at each point of the plane, less its largest value; log q(z|x) there."""
    joint, q = log_density(model.prior(), model.device), model.encode(x)
    log_p = []
    for z in np.split(PLANE, len(GRID)):
        given_z, _ = model.log_weights(Tensor(x), q, Tensor(to_device(z[:, None], model.device)))
        log_p.append(given_z.numpy()[:, 0])
    joint += np.concatenate(log_p)
    return joint - joint.max(), log_density(q, model.device)


@no_grad()
def log_density(distribution, device):
    """The log density of a Gaussian or a mixture at each point of the plane."""
    log_p = distribution.log_prob(to_device(PLANE[:, None], device))  # of each dimension, or of the whole z
    return to_host(log_p.data).reshape(len(PLANE), -1).sum(1)


def most_spread(model, images):
    """The index of the image whose posterior's components lie farthest apart, among those well within the plane."""
    q = model.encode(images)
    w, mean = q.weights.numpy()[:, :, None], q.components.mean.numpy()
    variance = (w * (mean - (w * mean).sum(1, keepdims=True)) ** 2).sum((1, 2))
    return np.where(abs(mean).max((1, 2)) < 2.5, variance, 0).argmax()


@no_grad()
def changed(model, x):
    """One image decoded with each value of each of eight variables of its code, (8 values, C, H, W)."""
    code = model.encode(x).mode.numpy()  # (1, variables, values)
    rows = np.repeat(code, 8 * model.values, 0).reshape(8, model.values, *code.shape[1:])
    for i in range(8):
        rows[i, :, i] = np.eye(model.values)
    return model.decode(to_device(rows.reshape(-1, *code.shape[1:]), model.device)).numpy()


def bound(model, images, config, *labels):
    with no_grad():
        return model.bound(images, np.random.default_rng(config.seed), *labels).total.numpy().mean()


def draw(priors, codes, labels, posteriors, shown, discrete, values, conditional, rates):
    """Densities on the plane: two priors and {name: (log p(z|x), log q(z|x))}; codes (N, 2) of both priors with their
    labels; the digits of the posteriors; codes' changes; samples of each class; {name: KL of each dimension}."""
    figure = Figure(figsize=(14.5, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1))
    axes = top.subplots(1, 4)
    plane, n = {"extent": (-5, 5, -5, 5), "origin": "lower", "cmap": "Greys"}, len(GRID)
    for ax, (name, log_p), points in zip(axes, priors.items(), codes):
        ax.imshow(np.exp(log_p).reshape(n, n), **plane)
        ax.scatter(*points.T, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=4)
        ax.set(xlim=(-5, 5), ylim=(-5, 5), title=f"{name} (grey)\nand means of q(z|x), by class")
    for ax, (name, (log_p, log_q)) in zip(axes[2:], posteriors.items()):
        ax.imshow(np.exp(log_p).reshape(n, n), **plane)
        levels = log_q.max() - np.array([4.5, 2.0, 0.5])
        ax.contour(GRID, GRID, log_q.reshape(n, n), levels=levels, colors="C3", linewidths=0.8, linestyles="solid")
        seen = np.argwhere(np.maximum(log_p, log_q - log_q.max()).reshape(n, n) > -6)
        (low, high), margin = (GRID[seen.min(0)], GRID[seen.max(0)]), 0.2
        ax.set(xlim=(low[1] - margin, high[1] + margin), ylim=(low[0] - margin, high[0] + margin))
        ax.set_title(f"p(z|x) of the digit (grey)\nand {name} (red)")
        inset = ax.inset_axes((0.0, 0.78, 0.22, 0.22))
        inset.imshow(shown[0, 0], cmap="gray_r")
        inset.set(xticks=(), yticks=())
    for ax in axes:
        ax.title.set_fontsize(9)
    left, middle, right = bottom.subplots(1, 3, width_ratios=(1.15, 1, 1))
    names = [f"variable {i}" for i in range(1, 9)]
    draw_images(left, discrete, values, "one digit: each row changes one discrete variable", names, range(values))
    rows = [f"z{i}" for i in range(1, len(conditional) // 10 + 1)]
    draw_images(middle, conditional, 10, "each row one z, decoded with each class", rows, range(10))
    for i, (name, rate) in enumerate(rates.items()):
        right.bar(np.arange(len(rate)) + 0.4 * i - 0.2, np.sort(rate)[::-1], 0.4, label=name)
    right.axhline(ACTIVE, color="k", linewidth=0.8, linestyle=":", label="active above")
    right.set(xlabel="dimension of z, in descending order", ylabel="KL, nats per image")
    right.set_title("dimensions in use", fontsize=9)
    right.legend(fontsize=8)
    return figure


def main():
    config = options(__doc__, CONFIG)
    digits = data.digits()
    binary = to_device(data.binarize_static(digits.test_images, seed=0).astype(np.float32), config.device)

    def new(model, *arguments, **settings):
        return model(*arguments, rng=np.random.default_rng(config.seed), **settings).to(config.device)

    plain = train(new(VAE, latent=2), config)
    prior = train(new(MixturePriorVAE, latent=2, components=config.components), config)
    posterior = train(new(MixturePosteriorVAE, latent=2, components=3), config)
    categorical = pretrained("vae-categorical").to(config.device)
    conditional = train(new(VAE, latent=8, classes=10), config, labels=digits.train_labels)
    cold = train(new(VAE, latent=32), config)
    warm = train(new(VAE, latent=32), config, {"beta": lambda done: min(1.0, 2 * done)})

    print("bounds on log p(x) of 500 test digits, nats per image")
    for name, model in {
        "2-d z, N(0, I) as prior, Gaussian posterior": plain,
        f"2-d z, mixture of {config.components} as prior": prior,
        "2-d z, mixture of 3 as posterior": posterior,
        "30 variables of 8 values, which ships": categorical,
    }.items():
        print(f"{name:>46} {bound(model, binary, config):8.1f}")
    given = bound(conditional, binary, config, digits.test_labels)
    print(f"{'8-d z, given the class':>46} {given:8.1f}")
    rates = {}
    for name, model in {"without warm-up": cold, "with warm-up": warm}.items():
        with no_grad():
            rates[name] = model.encode(binary).kl().numpy().mean(0)
        active = int((rates[name] > ACTIVE).sum())
        print(f"{f'32-d z, {name}':>46} {bound(model, binary, config):8.1f}, {active} active dimensions")

    priors = {"N(0, I)": log_density(plain.prior(), config.device)}
    priors[f"mixture of {config.components}"] = log_density(prior.prior(), config.device)
    chosen = most_spread(posterior, binary)
    x = binary[chosen : chosen + 1]
    posteriors = {"a Gaussian q(z|x)": log_posterior(plain, x), "a mixture q(z|x)": log_posterior(posterior, x)}
    seven = int(np.flatnonzero(digits.test_labels == 7)[0])
    z = np.random.default_rng(config.seed).standard_normal((8, 8), np.float32)
    of_each = to_device(np.repeat(z, 10, 0), config.device)
    with no_grad():
        conditional = conditional.decode(of_each, np.tile(np.arange(10), 8)).numpy()
        codes = [model.encode(binary).mode.numpy() for model in (plain, prior)]
    figure = draw(
        priors,
        codes,
        digits.test_labels,
        posteriors,
        to_host(x),
        changed(categorical, binary[seven : seven + 1]),
        categorical.values,
        conditional,
        rates,
    )
    save(figure, config.out, "17_vae_questions")


if __name__ == "__main__":
    run(main)
