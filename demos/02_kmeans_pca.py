"""Structure without labels: k-means and principal components of handwritten digits. About five seconds.

k-means represents each digit by the nearest of k centres, PCA by its coordinates along the k directions in which
digits vary most. Neither sees labels. The demo prints the squared error of their reconstructions, per image, and the
purity of the clusters: the share of digits whose label is the most frequent one in their cluster.
"""

import numpy as np
from common import options, run, save
from matplotlib.figure import Figure

from tinygen import data
from tinygen.models import PCA, KMeans
from tinygen.plotting import draw_images

CONFIG = {
    "clusters": (20, "of k-means", 2, 500),
    "components": (32, "of PCA", 1, 784),
    "iterations": (50, "of k-means, at most"),
}


def draw(digits, labels, centres, class_of, nearest, directions, reconstructions, plane):
    """Digits (N, 784) with their labels and nearest centres; centres with their most frequent class; directions; the
    digits' reconstructions {components: (N, 784)}; and their coordinates in PCA's plane (N, 2)."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=(1, 1.1, 1.25))
    some = {"digit": digits[:8], "centre": centres[nearest[:8]]}
    draw_images(axes[0, 0], as_images(centres[np.argsort(class_of, kind="stable")]), 5, "centres of k-means")
    draw_images(axes[0, 1], as_images(*some.values()), 8, "digits and their nearest centres", some)
    title = "directions of PCA, strongest first (grey: zero)"
    draw_images(axes[1, 0], as_images(directions / abs(directions).max()), 5, title)
    some = {"digit": digits[:8], **{k: np.clip(x[:8], 0, 1) for k, x in reconstructions.items()}}
    draw_images(axes[1, 1], as_images(*some.values()), 8, "digits, and PCA with so many components", some)
    for ax, classes, title in (
        (axes[0, 2], class_of[nearest], "coloured by the most frequent class in the cluster"),
        (axes[1, 2], labels, "coloured by the labels, which k-means and PCA have not seen"),
    ):
        points = ax.scatter(*plane.T, c=classes, cmap="tab10", vmin=-0.5, vmax=9.5, s=8)
        ax.set(xlabel="first component", ylabel="second component")
        ax.set_title(title, fontsize=9)
    figure.colorbar(points, ax=axes[:, 2], ticks=range(10), label="class of the digit")
    return figure


def as_images(*rows):
    """Rows of vectors (N, 784) -> (all N, 1, 28, 28)."""
    return np.concatenate(rows).reshape(-1, 1, 28, 28)


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    digits = data.digits()
    images, tested_images, labels = digits.train_images / 255, digits.test_images / 255, digits.test_labels
    x, tested = images.reshape(-1, 784), tested_images.reshape(-1, 784)

    kmeans = KMeans(images, config.clusters, config.iterations, rng=rng)
    centres, cluster, nearest = kmeans.centres, kmeans.encode(images), kmeans.encode(tested_images)
    class_of = np.array(
        [np.bincount(digits.train_labels[cluster == j], minlength=10).argmax() for j in range(len(centres))]
    )
    error = ((centres[nearest] - tested) ** 2).sum(1).mean()
    print(f"k-means, {config.clusters} centres: squared error {error:.1f} per image", end=", ")
    print(f"purity {100 * (class_of[nearest] == labels).mean():.0f} % (both on {len(tested)} test digits)")

    pca = PCA(images, max(8, config.components))
    codes = (tested - pca.mean) @ pca.directions.T
    reconstructions = {}
    for k in sorted({1, 2, 8, config.components}):
        reconstructions[k] = codes[:, :k] @ pca.directions[:k] + pca.mean
        error = ((reconstructions[k] - tested) ** 2).sum(1).mean()
        share = 100 * pca.variances[:k].sum() / x.var(0, ddof=1).sum()
        print(f"PCA, {k:2} components: squared error {error:4.1f} per image, {share:.0f} % of the variance")

    found = centres, class_of, nearest, pca.directions[:20], reconstructions, codes[:, :2]
    save(draw(tested, labels, *found), config.out, "02_kmeans_pca")


if __name__ == "__main__":
    run(main)
