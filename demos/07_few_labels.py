"""From unlabelled to few labels: a classifier on an autoencoder's features. A minute and a half.

The encoder is first trained to reconstruct all 4,500 digits, without their labels. A classifier on top then sees few
of these: 1 to 50 of each class. Three ways: a linear classifier on the codes, with the encoder frozen; from there the
encoder fine-tuned with it, at half the rate; and both from random weights. Accuracy on 500 other digits, as the mean
and standard deviation over choices of the labelled digits.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure
from tqdm import tqdm

from tinygen import Tensor, data, no_grad, ops
from tinygen.backend import to_device
from tinygen.models import Autoencoder
from tinygen.models.autoencoder import Encoder
from tinygen.nn import Linear
from tinygen.optim import Adam, Muon, cosine
from tinygen.training import fit

CONFIG = {
    "pretraining": (700, "steps of the autoencoder, with 64 digits each"),
    "steps": (120, "of each classifier, with all labelled digits or 64 of them; ten times as many where frozen"),
    "seeds": (5, "choices of the labelled digits"),
    "features": (32, "numbers in the autoencoder's code"),
}
LABELS = (1, 5, 10, 50)  # of each class


class Classifier:
    """A linear layer on an encoder's codes, which are first scaled to unit variance."""

    def __init__(self, encoder, scale, config, rng):
        self.encoder, self.scale = encoder, scale
        self.linear = Linear(config.features, 10, rng=rng).to(config.device)

    def codes(self, x):
        return self.encoder(x) * self.scale

    def accuracy(self, x, labels):
        with no_grad():
            return 100 * (self.linear(self.codes(x)).numpy().argmax(1) == labels).mean()


def train(parameters, logits, x, labels, steps, lr, rng):
    """Minimize the cross-entropy; x and labels are arrays on the device."""
    optimizer = Adam(parameters, lr)
    for step in range(steps):
        optimizer.lr = lr * cosine((step + 0.5) / steps)
        batch = rng.permutation(len(x))[:64]
        loss = ops.softmax_cross_entropy(logits(Tensor(x[batch])), labels[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def compare(config, x, labels, learned, scale, tested, rng):
    """{way: accuracy in percent} after training on the images ``x`` and their labels."""
    found = {}
    encoder = Encoder((1, 28, 28), config.features, rng=rng).to(config.device)
    encoder.load_state_dict(learned)
    model = Classifier(encoder, scale, config, rng)
    with no_grad():
        codes = model.codes(Tensor(x)).data  # once: they do not change
    train(model.linear.parameters(), model.linear, codes, labels, 10 * config.steps, 0.01, rng)
    found["frozen"] = model.accuracy(*tested)
    for way, lr in (("fine-tuned", 1e-3), ("from random weights", 2e-3)):
        if way == "from random weights":
            model = Classifier(Encoder((1, 28, 28), config.features, rng=rng).to(config.device), 1.0, config, rng)
        parameters = model.encoder.parameters() + model.linear.parameters()
        train(parameters, lambda x: model.linear(model.codes(x)), x, labels, config.steps, lr, rng)  # noqa: B023
        found[way] = model.accuracy(*tested)
    return found


def main():
    config = options(__doc__, CONFIG)
    digits = data.digits()
    images, tested = (part.astype(np.float32) / 255 for part in (digits.train_images, digits.test_images))
    rng = np.random.default_rng(config.seed)
    autoencoder = Autoencoder(code=config.features, rng=rng).to(config.device)
    optimizer = Muon(autoencoder.parameters(), lr=0.005)
    fit(autoencoder, images, steps=config.pretraining, optimizer=optimizer, rng=rng, schedule=cosine)
    with no_grad():
        scale = float(1 / autoencoder.encode(to_device(images[:1000], config.device)).numpy().std())
    tested = Tensor(to_device(tested, config.device)), digits.test_labels

    found = {}
    trials = [(n, seed) for n in LABELS for seed in range(config.seeds)]
    for n, seed in tqdm(trials, unit="choice", disable=None):
        rng = np.random.default_rng([config.seed, seed])
        of_class = [np.flatnonzero(digits.train_labels == k) for k in range(10)]
        chosen = np.concatenate([rng.choice(indices, n, replace=False) for indices in of_class])
        x, labels = (to_device(array[chosen], config.device) for array in (images, digits.train_labels))
        learned = autoencoder.encoder.state_dict()
        for way, accuracy in compare(config, x, labels, learned, scale, tested, rng).items():
            found.setdefault(way, []).append(accuracy)

    print("accuracy in percent on 500 test digits, mean (standard deviation) over", config.seeds, "choices of labels")
    print(f"{'labels of each class':<22}" + "".join(f"{n:>13}" for n in LABELS))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    for way, accuracies in found.items():
        a = np.reshape(accuracies, (len(LABELS), config.seeds))
        print(f"{way:<22}" + "".join(f"{m:7.1f} ({s:3.1f})" for m, s in zip(a.mean(1), a.std(1))))
        ax.errorbar(LABELS, a.mean(1), a.std(1), marker="o", capsize=4, label=f"encoder {way}")
    ax.set(xscale="log", xlabel="labels of each class", ylabel="accuracy on 500 test digits, percent")
    ax.set_xticks(LABELS, LABELS)
    ax.set_title("4,500 digits without labels, few with")
    ax.grid(alpha=0.3)
    ax.legend()
    save(figure, config.out, "07_few_labels")


if __name__ == "__main__":
    run(main)
