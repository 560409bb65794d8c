"""From unlabelled to few labels: a classifier on an autoencoder's features. More than a minute.

The encoder is first trained to reconstruct all 4,500 digits, without their labels. A classifier on top then sees few
of the labels, 1 to 50 of each class. Three ways are compared: a linear classifier on the codes of the frozen encoder;
both fine-tuned from there, at half the learning rate; and both trained from random weights. The demo prints the
accuracy on 500 other digits, as mean and standard deviation over choices of the labelled digits.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure
from tqdm import tqdm

from tinygen import Tensor, data, no_grad, ops
from tinygen.backend import to_device
from tinygen.models import Autoencoder
from tinygen.models.networks import Encoder
from tinygen.nn import Linear, Module
from tinygen.optim import Adam, Muon, cosine
from tinygen.training import fit

CONFIG = {
    "pretraining": (700, "steps of the autoencoder, with 64 digits each"),
    "steps": (120, "of each classifier, with all labelled digits or 32 of them; ten times as many where frozen"),
    "seeds": (5, "choices of the labelled digits"),
    "features": (32, "numbers in the autoencoder's code"),
}
LABELS = (1, 5, 10, 50)  # of each class


class Classifier(Module):
    """A linear layer on the encoder's codes times ``scale`` gives the logits of the classes."""

    def __init__(self, features, scale, rng):
        self.encoder, self.scale = Encoder((1, 28, 28), features, rng=rng), scale
        self.linear = Linear(features, 10, rng=rng)

    def codes(self, x):
        return self.encoder(x) * self.scale

    def forward(self, x):
        return self.linear(self.codes(x))

    @no_grad()
    def accuracy(self, x, labels):
        return 100 * (self(x).numpy().argmax(1) == labels).mean()


def train(model, x, labels, steps, lr, rng):
    """Minimize the cross-entropy; x and labels are arrays on the device."""
    optimizer = Adam(model.parameters(), lr)
    for step in range(steps):
        optimizer.lr = lr * cosine((step + 0.5) / steps)
        batch = rng.permutation(len(x))[:32]
        loss = ops.softmax_cross_entropy(model(Tensor(x[batch])), labels[batch]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def compare(config, x, labels, learned, scale, tested, rng):
    """{way: accuracy in percent} after training on the images ``x`` and their labels."""
    found = {}
    model = Classifier(config.features, scale, rng).to(config.device)
    model.encoder.load_state_dict(learned)
    with no_grad():
        codes = model.codes(Tensor(x)).data  # computed once, since they do not change
    train(model.linear, codes, labels, 10 * config.steps, 0.01, rng)
    found["frozen"] = model.accuracy(*tested)
    train(model, x, labels, config.steps, 1e-3, rng)
    found["fine-tuned"] = model.accuracy(*tested)
    model = Classifier(config.features, 1.0, rng).to(config.device)
    train(model, x, labels, config.steps, 2e-3, rng)
    found["from random weights"] = model.accuracy(*tested)
    return found


def draw(found, seeds):
    """Mean and standard deviation over the choices, from {way: (len(LABELS), seeds) of accuracies}."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    ax = figure.add_subplot()
    for way, a in found.items():
        ax.errorbar(LABELS, a.mean(1), a.std(1), marker="o", capsize=4, label=f"encoder {way}")
    ax.set(xscale="log", xlabel="labelled digits of each class", ylabel="accuracy on 500 test digits, percent")
    ax.set_xticks(LABELS, LABELS)
    ax.set_title(f"mean and standard deviation over {seeds} choices of the labelled digits", fontsize=10)
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


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

    found, learned = {}, autoencoder.encoder.state_dict()
    of_class = [np.flatnonzero(digits.train_labels == k) for k in range(10)]
    trials = [(n, seed) for n in LABELS for seed in range(config.seeds)]
    for n, seed in tqdm(trials, unit="choice", disable=None):
        rng = np.random.default_rng([config.seed, seed])
        chosen = np.concatenate([rng.choice(indices, n, replace=False) for indices in of_class])
        x, labels = (to_device(array[chosen], config.device) for array in (images, digits.train_labels))
        for way, accuracy in compare(config, x, labels, learned, scale, tested, rng).items():
            found.setdefault(way, []).append(accuracy)

    print("accuracy in percent on 500 test digits, mean (standard deviation) over", config.seeds, "choices of labels")
    print(f"{'labels of each class':<22}" + "".join(f"{n:>13}" for n in LABELS))
    found = {way: np.reshape(accuracies, (len(LABELS), config.seeds)) for way, accuracies in found.items()}
    for way, a in found.items():
        print(f"{way:<22}" + "".join(f"{m:7.1f} ({s:3.1f})" for m, s in zip(a.mean(1), a.std(1))))
    save(draw(found, config.seeds), config.out, "11_few_labels")


if __name__ == "__main__":
    run(main)
