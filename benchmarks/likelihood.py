"""The table of likelihoods on MNIST: belief networks, pixel models, flows, the VAE, and the autoencoder beside them.

    python benchmarks/likelihood.py gated-pixelcnn             # train, or resume training; write the row
    python benchmarks/likelihood.py gated-pixelcnn --evaluate  # evaluate the weights that ship; --json for JSON

Needs the full MNIST: missing files are downloaded, or a message says where to put them.
"""

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from machine import CORES, description
from matplotlib.figure import Figure
from report import write_section
from threadpoolctl import threadpool_limits

from tinygen import data, models, no_grad, plotting
from tinygen.factors import mutual_information_gap, sprites
from tinygen.parallel import keep_memory
from tinygen.samples import best_sigma, parzen
from tinygen.training import evaluate as mean_score
from tinygen.training import fit
from tinygen.weights import FOLDER, load, save

PROTOCOL = """
The first 50,000 images of MNIST's training set are learned from. Recipes were chosen on the last 10,000, the
validation images. The 10,000 test images served the table and the pictures only.

- *published*: pixels of the published binarization (`data.binarized_mnist`), in training and in the test.
- *static*: tested on the published binarization; trained on pixels drawn once by `data.binarize_static` with seed 0,
  since these rows are older here than that file. Each had been tested one to three times before its final training.
  Given the class, the test pixels are drawn with seed 1, since the published ones have no labels.
- *dynamic*: training pixels are drawn anew whenever an image is seen, validation pixels once, test pixels with seed 1.
- *grey*: values from 0 to 1.
- *8-bit*: grey values from 0 to 255, in bits per dimension; an image has 784. For flows uniform noise makes them real
  numbers. It is drawn anew whenever an image is seen, and once for the test, so their figures are upper bounds.
- *emoji*: the colour images of 32 x 32 that ship with tinygen, values from 0 to 255, in bits per dimension; an image
  has 3,072. In a random order, the first 191 of the 1,911 are the test images, the next 191 those for validation.
- *sprites*: 50,000 of the 61,440 binary images of 32 x 32 that `tinygen.factors` makes, drawn at random, are learned
  from; one half of the others is for validation, the other for the test.

Figures are minus log p(x), lower is better, and exact where nothing else is said. The VAE's is an upper bound with
5,000 importance-weighted samples: the mean bound with 20 over all test images, less what 5,000 gain over 20 on 100 of
them, spread evenly. With one draw of z, as in the paper's figure, vae-categorical's is 110 on 2,000 validation images.
After ± stands the standard error of the mean over images, for the VAE of both parts. Minutes are those of the code as
it was when the row was trained; diagonal-bilstm, nade, fvsbn, made and realnvp ran beside other programs,
vae-categorical on one core. In the pictures of the VAEs completions are where 200 rounds of z given x, and x given z,
have come.
""".strip()
PARZEN = """
Rows marked *Parzen*, higher is better, have no likelihood: the figure is that of Gaussians around 10,000 samples. The
section Samples says what it is worth.
""".strip()
DEPARTURES = """
Departures from the papers:

- *Muon* (`tinygen/optim.py`; Jordan et al. 2024), whose step moves a weight matrix equally far in every direction,
  or Adam where the table says so; averaged weights; weight decay, but for `vae-2d` and `autoencoder`;
- first filters of 15 x 15 instead of 7 x 7, and of 5 x 5 instead of 3 x 3 in PixelCNN's blocks; 24 units instead of 16
  in the Row LSTM;
- dropout in PixelCNN and the Row LSTM;
- residual branches and logits that start at zero in the autoregressive models; Gated PixelCNN gets each pixel's
  coordinates;
- a random order and an L1 penalty in FVSBN;
- for the VAE convolutions with residual blocks instead of fully connected layers, so that its figure beside the
  published one says more of networks than of training.

In the picture of the learning curves the losses are on 2,000 validation images; the VAE's is its ELBO with one draw
of z, looser than the bound in the table. The Diagonal BiLSTM's rate fell to zero twice, at 43 and 66 minutes, and
began again at 0.4 of the full one between. Rows above 92 nats are not shown.

![Validation nats against minutes of training](pictures/learning_curves.png)
""".strip()
TRIED = """
What else was tried, all on validation images, with one seed each. Trained on 25,600 images, the rate falling from 0.005
to zero; validated on 1,000; weight decay 0.1 but for the first:

| network | nats per image |
|---|---|
| PixelCNN of the table, without dropout, without weight decay | 85.98 |
| the same, with weight decay | 85.60 |
| the same, with dropout of 0.15 too | 86.71 |
| Row LSTM, width 16, 7 layers | 85.30 |
| the same, coordinates added to the first layer's output | 85.24 |
| the same, a learned bias for each pixel there instead | 85.04 |
| Gated PixelCNN, width 32, 8 layers, kernel 3, without coordinates | 85.48 |
| the same, coordinates in the first layer of both stacks | 84.07 |
| the same, coordinates in the first layer of the vertical stack alone | 84.14 |
| the same, and the vertical stack residual | 85.04 |
| Gated PixelCNN, width 24, 10 layers, kernel 3, coordinates in the first layer of the vertical stack | 84.34 |
| with a number for each row and each column there instead | 84.33 |
| with coordinates in every layer of that stack | 83.74 |
| with 15 products of cosines of them in every layer | 83.70 |
| with coordinates in every layer, and that stack residual | 84.49 |
| Gated PixelCNN with coordinates in every layer, width 20, 14 layers, kernel 3 | 83.58 |
| width 24, 6 layers, kernel 5 | 83.26 |
| width 20, 8 layers, kernel 5 | 83.01 |
| width 16, 12 layers, kernel 5: the table's | 82.76 |
| width 12, 18 layers, kernel 5 | 84.01 |
| width 24, 5 layers, kernel 7 | 83.12 |

- PixelCNN: whether dropout pays later was not isolated. With neither it nor weight decay validation fell behind
  training: 82.6 after 5 epochs, with both 81.4 after 16.
- Row LSTM: of width 16, with neither, it stood still at 81.6 from the 15th epoch on while training went from 80.8 to
  80.2, and got worse at the full rate, its weights having grown by a third to a half. Of width 24 with both: 81.5 after
  3 epochs, 80.1 after 13, training, with its dropout, at 80.0.
- Diagonal BiLSTM: with weight decay 82.1 after 72,000 images, still at the full rate; without, 82.9 after 77,000, the
  rate fallen to zero. The second part took it from 79.53 to 79.42.
- Gated PixelCNN, coordinates in the first layer alone, width 32, 10 layers, kernel 3: with dropout of 0.1 in the
  horizontal stack 79.98 after 14,500 steps, training, measured without dropout, at 78.53. After 600 steps more, the
  rate falling from 0.4 of the full one to zero: 80.12 with nothing changed, 80.15 with dropout of 0.25 in that stack,
  80.31 with weight decay of 0.5, 80.32 with dropout of 0.1 in the vertical stack too, 80.97 with 0.25. After 22,000
  steps instead, with dropout of 0.1 in the vertical stack for two thirds of them: 79.79. Trained on 6,000
  images for 1,500 steps, validated on 600: 85.60; at width 24 85.44, there with dropout in both stacks 84.80, there
  with weight decay of 0.3 and no dropout 84.20. The last, on all images, was at 80.68 after 23,100 of 33,000 steps,
  and stopped.
- FVSBN, in raster order, on the logits of every eighth pixel, scaled to all, after 4,000 steps of 256: 99.39 with Adam
  and no weight decay, 99.07 with 0.1; 99.04 with stochastic gradient descent, 98.99 with an L2 penalty too, 98.86 with
  an L1 penalty, 99.02 with an L2 penalty that grows with the distance between pixels; 102.8 with dropout of 0.2 on the
  input. The order matters more. After 1,500 steps, weight decay 0.1: 102.7 in raster order and from right to left,
  102.9 by columns, 101.8 from the last row up, 105.3 from the border inwards, 100.6 from the centre outwards, 100.8
  from coarse to fine, 100.8 in a random order. There, after 3,000 steps, 99.1, from the centre outwards 99.5; in the
  random order with weight decay of 0.3 100.8, of 0.03 99.0, with L1 of 0.02 99.0, of 0.1 99.8; after 6,000 steps, with
  L1 of 0.03 98.1, of 0.05 at twice the rate 98.1; after 8,000, with weight decay of 0.03, 98.6.
- NADE: overfits from step 4,500 on, where validation was at 87.06; it ended at 87.47. Muon at 0.03 got further in a
  minute (94.0 against 96.0), but had a gap to training of 3.4 at once; with weight decay of 0.5 95.4 after two minutes.
- MADE in raster order, 800 units, weight decay 0.1: training ended at 83.9, validation at 90.2, test at 89.67. After
  1,500 steps, 91.7; in a random order 91.3, from the centre outwards 92.8; with dropout of 0.3 or 0.5 in the hidden
  units 92.9 or 94.1; with weight decay of 0.5 or 1.5 92.9 or 99.3; with 2,000 units at a lower rate 96.4, with two
  layers of 600 92.8. With an L1 penalty of 0.05, 0.2 or 0.5 in place of weight decay, in a random order, 91.4, 97.0 or
  107.5, but of the first training is only 0.7 nats ahead, and after 6,000 steps validation is at 88.9.
- RBM, with all persistent chains going on from digits: 85.9 nats annealed from pixels with the data's frequencies, and
  86.0 from the model's own samples. Neither was true. Chains from uniform noise ended in images with a bright border,
  which no chain of the training had visited, and annealed from uniform pixels log Z was at least 105 nats higher. The
  table's RBM, of whose chains some begin anew at noise, has one mode for all we found: chains from noise, from white,
  black and inverted images reach the same free energies, and log Z from both starts and from samples agrees to 0.2.
- Mixture of Bernoullis, after 8 rounds: 139.4 with a prior of 0.2 pixels of each value, 136.3 with 0.05; after 30
  rounds 143.8 with 1.
- Real NVP, bits per dimension on 500 validation images. After 300 steps of 16 images, 24 channels, on the logit of
  pixels: 2.83 with actnorm for each number; 2.16 with black at 0 and a learned scale for each pixel; 1.86 with the
  couplings' scales bounded by 3 instead of 1; 1.81 without learned offsets; 1.95 then with a normal instead of a softly
  uniform z; 1.79 with tanh x beside x as the networks' input. After 1,000 steps of 32, 48 channels: 1.387 with it, and
  1.255 with equalized levels in place of the logit; there, 1.295 at twice the rate, 1.276 with scales bounded by 2,
  1.299 with a mixture as z's density; a learned map of positions as a further input made the logit's 1.43. The table's
  model stood at 1.18 from step 9,000 on until the rate fell, and had no gap to training at the end (both 1.15), so a
  larger network and a longer training should still gain.
- VAE, minus the ELBO, with a rate falling to zero, runs of unequal lengths: 97.9 with residual blocks after 77,000
  images (54 seconds), 97.2 without, but wider, after 134,000 (83 seconds). At a rate of 0.005 most units died in two of
  the encoder's three residual blocks, and were never positive again, and one run ended in an overflow after two
  minutes; at 0.003 they died in one block; at 0.0015 there too, if later.
""".strip()
BYTES = "8-bit", "emoji"  # protocols of values from 0 to 255
RECIPE = ("settings", "protocol", "steps", "batch_size", "lr", "weight_decay", "averaging")  # saved with the weights
SEED = 0  # of the weights, the order of the images and all noise
LEARNED = 50_000  # images of the training set; the others are for validation
VALIDATION = 2000  # of the validation images, for the learning curves
PART = 20  # images evaluated at once
CODED = 128  # images encoded at once
ROUGH = 20  # importance-weighted samples of a VAE, for all test images
DRAWN, TUNED = 10_000, 1000  # samples of a Parzen window, and validation images that choose its sigma
SAMPLES, SOME = 5000, 100  # importance-weighted samples for some test images, and the number of these images
ANNEALING = 10_000, 100  # temperatures and chains that estimate log Z of an RBM
CHECKPOINTS = Path(__file__).parent.parent / "out" / "likelihood"
PICTURES = Path(__file__).parent / "pictures"


def schedule(parts):
    """The factor on the learning rate, as a function of the fraction of training done.

    In the first part it is 1 for 0.4 of the steps; later parts begin at 0.4. In each part it falls linearly to zero.
    """

    def rate(done):
        step, i = done * sum(parts), 0
        while step >= parts[i] and i < len(parts) - 1:
            step, i = step - parts[i], i + 1
        left = 1 - step / parts[i]
        return 0.4 * left if i else min(1, left / 0.6)

    return rate


def grey(images):
    return images.astype(np.float32) / 255


def sets(protocol, classes=0):
    """The images for training, validation and testing."""
    if protocol == "sprites":
        images = np.random.default_rng(SEED).permutation(sprites().images)
        return images[:LEARNED], images[LEARNED::2], images[LEARNED + 1 :: 2]
    if protocol == "emoji":
        images = np.random.default_rng(SEED).permutation(data.emoji().images)
        tenth = len(images) // 10
        return images[2 * tenth :], images[tenth : 2 * tenth], images[:tenth]
    if protocol == "published":
        return data.binarized_mnist()
    digits = data.mnist()
    if protocol == "8-bit":
        learned, tested = digits.train_images, digits.test_images
    elif protocol == "grey":
        learned, tested = grey(digits.train_images), grey(digits.test_images)
    else:
        learned, tested = data.binarize_static(digits.train_images, 0), data.binarize_static(digits.test_images, 1)
    if protocol == "dynamic":
        learned = digits.train_images  # fit draws the pixels
    if protocol == "static" and not classes:  # the published test set has no labels
        tested = data.binarized_mnist().test
    return learned[:LEARNED], learned[LEARNED:], tested


def labels(model):
    """The labels of the same three sets for a model with classes; otherwise three times None."""
    if not model.classes:
        return None, None, None
    digits = data.mnist()
    return digits.train_labels[:LEARNED], digits.train_labels[LEARNED:], digits.test_labels


def checkpoint(name):
    """The checkpoint of a row. Its name depends on the recipe, so that no run resumes one with another recipe."""
    row = models.RECIPES[name]
    recipe = repr((SEED, replace(row, published=""))).encode()
    start = (FOLDER / f"{row.start}.npz").read_bytes() if row.start else b""
    return CHECKPOINTS / f"{name}-{sha256(recipe + start).hexdigest()[:8]}.npz"


def train(name):
    """Train from the start, or from the checkpoint if there is one. Returns the path of the weights."""
    row, rng = models.RECIPES[name], np.random.default_rng(SEED)
    images, validation, _ = sets(row.protocol)
    model = row.model(**row.settings, rng=rng)
    if row.start:  # the classes' weights, which are missing there, start at zero
        model.load_state_dict({**model.state_dict(), **load(FOLDER / f"{row.start}.npz")[0].state_dict()})
    learn = by_gradients if row.optimizer else by_maximizing
    record = learn(name, model, images, validation[:VALIDATION], rng)
    epochs = sum(row.steps) * (row.batch_size / len(images) if row.optimizer else 1)
    about = {key: getattr(row, key) for key in RECIPE}
    about |= {"optimizer": row.optimizer and row.optimizer.__name__, "seed": SEED, "epochs": round(epochs, 1)}
    about |= {"minutes": [round(r["seconds"] / 60, 2) for r in record], "machine": description("numpy")}
    about |= {"options": row.options} if row.options else {}
    about |= {key: [round(r[key], 3) for r in record] for key in ("train", "validation")}
    path = CHECKPOINTS / f"{name}.weights.npz"
    save(path, model, about)
    return path


def by_gradients(name, model, images, validation, rng):
    row, (of_images, of_validation, _) = models.RECIPES[name], labels(model)
    return fit(
        model,
        images,
        steps=sum(row.steps),
        optimizer=row.optimizer(model.parameters(), row.lr, weight_decay=row.weight_decay, **row.options),
        rng=rng,
        labels=of_images,
        batch_size=row.batch_size,
        prepare=data.binarize_dynamic if row.protocol == "dynamic" else None,
        schedule=schedule(row.steps),
        averaging=row.averaging,
        validation=validation,
        validation_labels=None if of_validation is None else of_validation[: len(validation)],
        validate_every=max(1, sum(row.steps) // 20),
        checkpoint=checkpoint(name),
    )


def by_maximizing(name, model, images, validation, rng):
    begun = time.perf_counter()
    model.maximize(images, sum(models.RECIPES[name].steps))
    seconds = time.perf_counter() - begun
    nats = {"train": images[: len(validation)], "validation": validation}
    return [{"seconds": seconds, **{key: mean_score(model, part, rng) for key, part in nats.items()}}]


def test(model, images, of_images, samples=0):
    """(N,): the score of each image (given its label, for a model with classes), but for log Z of an RBM.

    With ``samples``, it is minus the importance-weighted bound, for a model that has no exact likelihood.
    """

    @no_grad()
    def figures(start):
        part = images[start : start + PART]
        if isinstance(model, models.RBM):
            return model.free_energy(part).numpy()
        part_labels = () if of_images is None else (of_images[start : start + len(part)],)
        if samples:
            return -model.log_likelihood(part, np.random.default_rng([SEED, samples, start]), samples, *part_labels)
        return model.score(part, np.random.default_rng([SEED, start]), *part_labels).numpy()

    keep_memory()
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(CORES) as threads:
        return np.concatenate(list(threads.map(figures, range(0, len(images), PART)))).astype(float)


@no_grad()
def codes(model, images, rng):
    """(N, latent): a draw of q(z|x) for each image."""
    parts = [model.encode(images[start : start + CODED]) for start in range(0, len(images), CODED)]
    return np.concatenate([q.sample(rng) for q in parts])


def drawn(model, n, rng):
    """(n, C, H, W): samples, or their means where a model has such, some at a time to bound memory."""
    draw = getattr(model, "sample_means", model.sample)
    return np.concatenate([draw(min(500, n - i), rng) for i in range(0, n, 500)])


def parzen_windows(model, validation, tested):
    """The Parzen-window estimate of log p(x) on the test images, in nats, as papers report it for models without a
    likelihood: with DRAWN samples, and the sigma that is best for TUNED validation images."""
    keep_memory()
    samples = drawn(model, DRAWN, np.random.default_rng(SEED))
    sigma = best_sigma(samples, validation[:TUNED])
    found = parzen(samples, tested, sigma)
    return {"parzen": round(found.mean, 3), "stderr": round(found.stderr, 3), "sigma": round(sigma, 3)}


def key_of(model, protocol):
    """The name under which a row's result is saved."""
    names = {"nats per image": "nats", "squared error per image": "squared_error"}
    return "bits_per_dim" if protocol in BYTES else names[model.unit]


def evaluate(name, path, count=None):
    """Evaluate the weights in a file on ``count`` test images; returns an object for JSON.

    By default all test images are used; for the SAMPLES of a bound, SOME of them.
    """
    model, about = load(path)
    images, validation, tested = sets(about["protocol"], model.classes)
    of_tested = labels(model)[2]
    bounded = hasattr(model, "log_likelihood")  # by importance-weighted samples
    count = min(count or (SOME if bounded else len(tested)), len(tested))
    chosen = np.arange(count) * len(tested) // count  # spread evenly: the halves of the test set differ
    about_it = {"images": count, "protocol": about["protocol"], "parameters": model.num_parameters()}
    if isinstance(model, models.GAN | models.GSN):
        return {"name": name, **parzen_windows(model, validation, tested[chosen]), **about_it}
    figures = test(model, tested[chosen], None if of_tested is None else of_tested[chosen], SAMPLES if bounded else 0)
    means, error = [figures], 0.0
    if isinstance(model, models.RBM):  # one careful estimate of log Z for all images, from either end
        rng = np.random.default_rng(SEED)
        log_z, error = model.log_z(rng, *ANNEALING)
        means = [figures + log_z]
    if bounded:
        # The gain from more samples varies much less between images than the bound, so few images suffice for its mean
        rough = test(model, tested, of_tested, ROUGH)
        means = [rough, figures - rough[chosen]]
    if about["protocol"] in BYTES:
        means = [models.bits_per_dim(part, model.image_shape) for part in means]
    result = {
        "name": name,
        key_of(model, about["protocol"]): round(sum(part.mean() for part in means), 3),
        "stderr": round(math.hypot(error, *(part.std(ddof=1) / math.sqrt(len(part)) for part in means)), 3),
        "images": len(means[0]),
        "protocol": about["protocol"] + (", given the class" if model.classes else ""),
        "parameters": model.num_parameters(),
    }
    if bounded:
        result["images_with_all_samples"] = count
    if isinstance(model, models.RBM):
        other = model.log_z(rng, *ANNEALING, model.sample(ANNEALING[1], rng))
        result |= {
            "log_z": round(log_z, 3),
            "log_z_stderr": round(error, 3),
            "log_z_from_samples": round(other.value, 3),
        }
    if about["protocol"] == "sprites":
        pictures, known = sprites()
        drawn = codes(model, pictures, np.random.default_rng(SEED))
        result["mig"] = round(float(mutual_information_gap(drawn, known).mean()), 3)
    if "squared_error" in result:
        linear = models.PCA(images, about["settings"]["code"]).reconstruct(tested[chosen])
        result["pca_squared_error"] = round(float(((linear - tested[chosen]) ** 2).sum((1, 2, 3)).mean()), 3)
    return result


# -- pictures and tables


def completions(model, images, rng):
    """The images with their lower halves drawn anew, given the upper ones."""
    upper = np.arange(images.shape[2])[:, None] < images.shape[2] // 2
    return model.complete(images, rng, upper)


@no_grad()
def draw(name):
    """64 test images, 64 samples, and completions; with classes ten samples of each; of a model that cannot draw
    reconstructions, beside PCA's."""
    model, about = load(FOLDER / f"{name}.npz")
    images, _, tested = sets(about["protocol"])
    tested = tested[np.arange(72) * len(tested) // 72]  # spread evenly, since the published set is sorted by digit
    white = 255 if about["protocol"] in BYTES else 1
    what, height = {"sprites": "sprite", "emoji": "emoji"}.get(about["protocol"], "digit"), model.image_shape[1]
    rng, panels = np.random.default_rng(SEED), {f"64 test {what}s": (tested[:64] / white, 8)}
    if not hasattr(model, "sample"):
        code = about["settings"]["code"]
        linear = models.PCA(images, code).reconstruct(tested[:64])
        panels[f"{code} numbers each: {name}"] = np.clip(model.reconstruct(tested[:64]).numpy(), 0, 1), 8
        panels[f"{code} numbers each: PCA"] = np.clip(linear, 0, 1), 8
    elif model.classes:
        drawn = model.sample(100, rng, labels=np.arange(100) // 10)
        panels = {"ten samples of each class": (drawn, 10, range(10))}
    else:
        if hasattr(model, "sample_means"):
            panels["pixel probabilities of 64 samples"] = model.sample_means(64, rng), 8
        else:
            panels["64 samples"] = model.sample(64, rng) / white, 8
        if hasattr(model, "complete"):
            chosen = tested[64:72, None]
            completed = completions(model, np.repeat(tested[64:72], 6, axis=0), rng)
            given, completed = np.arange(height)[:, None] < height // 2, completed.reshape(8, 6, *model.image_shape)
            rows = np.concatenate([chosen * given, completed, chosen], axis=1) / white
            panels[f"given half, six completions, the {what}"] = rows.reshape(-1, *model.image_shape), 8
    PICTURES.mkdir(exist_ok=True)
    plotting.figure(panels).savefig(PICTURES / f"{name}.png", dpi=110)


def write_tables():
    """Write the rows that have weights into RESULTS.md, and a picture of their learning curves."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    ax = figure.add_subplot()
    lines = ["| row | on test | published | images | protocol | parameters | epochs | minutes |", "|---" * 8 + "|"]
    recipes = [
        "| row | built with | optimizer | batch | learning rate | weight decay | averaging | steps | seed | machine |",
        "|---" * 10 + "|",
    ]
    for name, row in models.RECIPES.items():
        path = FOLDER / f"{name}.npz"
        model, about = load(path) if path.exists() else (None, {})
        if "result" in about:
            result, minutes = about["result"], about["minutes"]
            if "squared_error" in result:
                on_test, published = f"{result['squared_error']:.2f}", f"PCA: {result['pca_squared_error']:.2f}"
            elif "parzen" in result:
                on_test, published = f"Parzen {result['parzen']:.2f}", row.published
            else:
                key = key_of(model, about["protocol"])
                on_test = f"{result[key]:.3f} bits/dim" if key == "bits_per_dim" else f"{result[key]:.2f}"
                published = row.published
                # Others are far off the scale, or of other images
                if about["validation"][-1] < 92 and about["protocol"] != "sprites":
                    shown = f"minus ELBO, {result['protocol']}" if hasattr(model, "bound") else result["protocol"]
                    ax.plot(
                        minutes,
                        about["validation"],
                        label=f"{name} ({shown}){f', after {row.start}' if row.start else ''}",
                    )
            start = f", from {row.start}" if row.start else ""
            steps = " + ".join(f"{part:,}" for part in about["steps"])
            settings = ", ".join(f"{key}={value!r}" for key, value in about["settings"].items())
            digits = 3 if "bits_per_dim" in result else 2
            lines.append(
                f"| {name} | {on_test} ± {result['stderr']:.{digits}f} | {published} | {result['images']:,} "
                f"| {result['protocol']} | {model.num_parameters():,} | {about['epochs']:.1f} | {minutes[-1]:.0f} |"
            )
            cells = [f"{about[key]:g}" for key in ("batch_size", "lr", "weight_decay", "averaging")]
            if row.optimizer is None:  # expectation-maximization has none of these
                cells = ["-"] * 4
            optimizer = about.get("optimizer", "Muon") or "EM"
            if options := ", ".join(f"{key}={value}" for key, value in about.get("options", {}).items()):
                optimizer += f" ({options})"
            cells = [name, f"`{about['model']}({settings})`{start}", optimizer, *cells, steps, about["seed"]]
            recipes.append(f"| {' | '.join(map(str, cells))} | {about['machine']} |")
    ax.set(xlabel="minutes of training on two cores", ylabel=f"nats per image on {VALIDATION:,} validation images")
    ax.set_ylim(top=92)
    if ax.lines:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    ax.grid(alpha=0.3)
    figure.savefig(PICTURES / "learning_curves.png", dpi=110)
    units = (
        "Nats per image, unless the cell says bits per dimension; for the autoencoder squared error per image, with 32 "
        "numbers in a code, beside our own PCA's."
    )
    if any("Parzen" in line for line in lines):
        units += f"\n\n{PARZEN}"
    write_section("Likelihood", "\n\n".join([PROTOCOL, units, "\n".join(lines), "\n".join(recipes), DEPARTURES, TRIED]))


def main():
    parser = argparse.ArgumentParser(
        description="Train a row, for one to 75 minutes on two cores, or go on where it was cut off; then replace the "
        "weights that ship, the row's pictures and the tables of RESULTS.md."
    )
    parser.add_argument("name", choices=models.RECIPES, help="the row")
    parser.add_argument("--evaluate", action="store_true", help="only evaluate the weights that ship; replaces nothing")
    parser.add_argument(
        "--images", type=int, help="with --evaluate: only so many test images (of a VAE with 5,000 samples)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options = parser.parse_args()
    if options.images is not None and not options.evaluate:
        parser.error("--images: needs --evaluate")
    if options.images is not None and options.images < 2:  # one has no standard error
        parser.error(f"--images: got {options.images}, needs at least 2")
    try:
        data.mnist(), data.binarized_mnist()
    except FileNotFoundError as error:  # it says what to download and where to put it
        parser.error(str(error))
    shipped = FOLDER / f"{options.name}.npz"
    if options.evaluate and not shipped.exists():
        parser.error(f"name: {options.name} has no weights yet; train it without --evaluate")
    path = shipped if options.evaluate else train(options.name)
    result = evaluate(options.name, path, options.images)
    if not options.evaluate:
        model, about = load(path)
        save(shipped, model, {**about, "result": result})
        draw(options.name)
        write_tables()
    if options.json:
        print(json.dumps(result))
    else:
        print(", ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
