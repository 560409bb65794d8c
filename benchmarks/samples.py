"""The table of samples: how near they are to real digits, by four measures that disagree.

    python benchmarks/samples.py                          # all models that ship; writes the section of RESULTS.md
    python benchmarks/samples.py gan gsn --samples 1000   # some of them, from fewer samples; writes nothing
    python benchmarks/samples.py --train-classifier       # the classifier anew, in a minute; replaces its weights

Needs the full MNIST, like ``likelihood.py``.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from likelihood import LEARNED, SEED, TUNED, drawn, sets
from report import table, write_section

from tinygen import data, models, no_grad, ops
from tinygen.models.features.kmeans import squared_distances
from tinygen.models.networks import Encoder
from tinygen.nn import Linear, Module
from tinygen.optim import Adam, cosine
from tinygen.parallel import keep_memory
from tinygen.samples import best_sigma, frechet_distance, nearest_distances, parzen
from tinygen.training import fit
from tinygen.weights import FOLDER, load, save

CLASSIFIER = Path(__file__).with_name("classifier.npz")
SAMPLES = 10_000
COPIES = 2000  # samples whose nearest training image is looked for
PART = 250  # images classified, or distances computed, at once
COLUMNS = ["samples", "images", "Frechet distance", "confidence", "rarest and commonest class", "near-copies", "Parzen"]
TEXT = """
`python benchmarks/samples.py`. Every row is compared with the 10,000 test digits in its own protocol: *grey* values in
[0, 1] (those of 8-bit models over 255), or *binary* pixels drawn with the grey values as probabilities.

- *Frechet distance* between the features of the samples and those of the test digits; lower is better. The features
  are the 64 inputs of the last layer of a convolutional classifier that was trained on the training digits, grey and
  binary. It depends on the classifier and the number of samples, and compares only with figures of this table.
- *Confidence*: the mean probability of the class that the classifier finds most probable.
- *Rarest and commonest class*: their shares of the samples, as classified. Where a mode is missing, one is near zero.
- *Near-copies*: the share of samples nearer to a training image than all but 1 % of the validation digits are. So new
  digits have 1 %, and a model that copies has more.
- *Parzen*: mean log-likelihood of the test digits in nats under Gaussians around the samples, higher is better, with
  the width that is best for 1,000 validation digits (Breuleux et al. 2011), ± the standard error. The GAN's paper has
  225 ± 2, the GSN's 214 ± 1.1. Samples are means of P(x|x~) for the GSN, as in its paper.

The last measure misleads (Theis et al. 2016): the centres of k-means, no model of digits at all, do better than as many
real training digits, since they lie in the middle of them.
""".strip()


class Classifier(Module):
    """Digits (N, 1, 28, 28), values in [0, 1] -> logits of the ten classes (N, 10)."""

    def __init__(self, *, rng):
        self.encoder = Encoder((1, 28, 28), 64, (16, 32, 64), rng=rng)
        self.out = Linear(64, 10, rng=rng)

    def features(self, x):
        """(N, 64)"""
        return ops.relu(self.encoder(x))

    def forward(self, x):
        return self.out(self.features(x))

    def loss(self, x, rng=None, labels=None):
        return ops.softmax_cross_entropy(self(x), labels).mean()


def grey_or_binary(images, rng):
    """Grey digits 0 .. 255 as values in [0, 1], every second one on average as binary pixels."""
    binary = rng.random((len(images), 1, 1, 1)) < 0.5
    return np.where(binary, data.binarize_dynamic(images, rng), images / np.float32(255)).astype(np.float32)


def train_classifier():
    """Replace the weights of the classifier."""
    classifier, digits, rng = Classifier(rng=np.random.default_rng(SEED)), data.mnist(), np.random.default_rng(SEED)
    fit(
        classifier,
        digits.train_images[:LEARNED],
        steps=1500,
        optimizer=Adam(classifier.parameters(), 2e-3),
        rng=rng,
        labels=digits.train_labels[:LEARNED],
        prepare=grey_or_binary,
        schedule=cosine,
        averaging=0.99,
    )
    save(CLASSIFIER, classifier)
    for name, images in {"grey": sets("grey")[2], "binary": sets("dynamic")[2]}.items():
        right = in_parts(classifier, images).argmax(1) == digits.test_labels
        print(f"accuracy on the {name} test digits: {100 * right.mean():.2f} %")


@no_grad()
def in_parts(function, images):
    """``function`` of the images, some at a time."""
    parts = [images[i : i + PART].astype(np.float32) for i in range(0, len(images), PART)]
    return np.concatenate([function(part).numpy() for part in parts])


def real(protocol):
    """Training, validation and test digits in [0, 1]: grey, or with binary pixels."""
    if protocol == "grey":
        return sets("grey")
    learned, validation, tested = sets("dynamic")
    return data.binarize_static(learned, 2), data.binarize_static(validation, 3), tested


def centres(images, k, rounds, rng):
    """(k, 1, 28, 28): k-means from images drawn as first centres, for so many ``rounds``, without k-means++."""
    x = images.reshape(len(images), -1)
    found = x[rng.permutation(len(x))[:k]]
    for _ in range(rounds):
        nearest = np.concatenate([squared_distances(x[i : i + PART], found).argmin(1) for i in range(0, len(x), PART)])
        order, counts = np.argsort(nearest, kind="stable"), np.bincount(nearest, minlength=k)
        held = counts > 0
        sums = np.add.reduceat(x[order], np.cumsum(counts)[held] - counts[held])
        found[held] = sums / counts[held, None]
    return found.reshape(k, *images.shape[1:])


class Judge:
    """What the samples of one protocol are compared with."""

    def __init__(self, protocol, classifier):
        self.protocol, self.classifier = protocol, classifier
        self.learned, self.validation, self.tested = real(protocol)
        self.features = in_parts(classifier.features, self.tested)
        usual = nearest_distances(self.validation[:COPIES], self.learned)
        self.near = np.quantile(usual, 0.01)  # nearer to a training image than all but 1 % of real digits

    def row(self, name, samples, with_parzen=False):
        """The cells of a row, all texts."""
        p = in_parts(lambda x: ops.softmax(self.classifier(x), 1), samples)
        shares = np.bincount(p.argmax(1), minlength=10) / len(p)
        distance = frechet_distance(in_parts(self.classifier.features, samples), self.features[: len(samples)])
        copies = (nearest_distances(samples[:COPIES], self.learned) < self.near).mean()
        found = ""
        if with_parzen:
            log_p = parzen(samples, self.tested, best_sigma(samples, self.validation[:TUNED]))
            found = f"{log_p.mean:.1f} ± {log_p.stderr:.1f}"
        balance = f"{100 * shares.min():.1f} % to {100 * shares.max():.1f} %"
        cells = [f"{distance:.2f}", f"{100 * p.max(1).mean():.1f} %", balance, f"{100 * copies:.1f} %", found]
        return [name, self.protocol, *cells]


def samples_of(model, protocol, n):
    """n samples with values in [0, 1]: grey pixels for a Parzen window, otherwise draws."""
    rng = np.random.default_rng(SEED)
    if protocol == "grey":
        return drawn(model, n, rng)
    parts = [min(500, n - i) for i in range(0, n, 500)]
    labels = [(rng.integers(0, model.classes, part),) if model.classes else () for part in parts]
    images = np.concatenate([model.sample(part, rng, *given) for part, given in zip(parts, labels)])
    return images / np.float32(255 if protocol == "8-bit" else 1)


def rows(names, n):
    """Yield the rows: real digits first, then the shipped models, and what Parzen windows think of k-means."""
    classifier = Classifier(rng=np.random.default_rng(SEED))
    load(CLASSIFIER, classifier)
    judges = {protocol: Judge(protocol, classifier) for protocol in ("grey", "binary")}
    for judge in judges.values():
        yield judge.row("validation digits", judge.validation[:n])
    for judge in judges.values():
        yield judge.row("training digits", judge.learned[:n], judge.protocol == "grey")
    grey = judges["grey"]
    yield grey.row("centres of k-means", centres(grey.learned, n, 3, np.random.default_rng(SEED)), True)
    for name in names:
        model, about = load(FOLDER / f"{name}.npz")
        protocol, begun = about["protocol"], time.perf_counter()
        judge = judges["grey" if protocol in ("grey", "8-bit") else "binary"]
        row = judge.row(name, samples_of(model, protocol, n), protocol == "grey")
        print(f"{name}: {time.perf_counter() - begun:.0f} s", flush=True)
        yield row


def main():
    can = [name for name, row in models.RECIPES.items() if hasattr(row.model, "sample") and row.protocol != "sprites"]
    shipped = [name for name in can if (FOLDER / f"{name}.npz").exists()]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(shipped)} (default: all)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each model (default: %(default)s)")
    parser.add_argument("--train-classifier", action="store_true", help="train the classifier instead")
    options = parser.parse_args()
    if options.train_classifier:
        return train_classifier()
    if unknown := sorted(set(options.names) - set(shipped)):
        parser.error(f"names: got {', '.join(unknown)}, needs some of {', '.join(shipped)}")
    if not 2 <= options.samples <= SAMPLES:
        parser.error(f"--samples: got {options.samples}, needs a number from 2 to {SAMPLES}")
    keep_memory()
    text = table(COLUMNS, rows(options.names or shipped, options.samples))
    print(text)
    if not options.names and options.samples == SAMPLES:
        write_section("Samples", f"{TEXT}\n\n{text}")


if __name__ == "__main__":
    main()
