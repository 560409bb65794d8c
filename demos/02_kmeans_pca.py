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


def main():
    config = options(__doc__, CONFIG)
    rng = np.random.default_rng(config.seed)
    digits = data.digits()
    images, tested_images, labels = digits.train_images / 255, digits.test_images / 255, digits.test_labels
    x, tested = images.reshape(-1, 784), tested_images.reshape(-1, 784)

    kmeans = KMeans(images, config.clusters, config.iterations, rng=rng)
    centres, cluster, nearest = kmeans.centres, kmeans.encode(images), kmeans.encode(tested_images)
    name_of = np.array(
        [np.bincount(digits.train_labels[cluster == j], minlength=10).argmax() for j in range(len(centres))]
    )
    error = ((centres[nearest] - tested) ** 2).sum(1).mean()
    print(f"k-means, {config.clusters} centres: squared error {error:.1f} per image", end=", ")
    print(f"purity {100 * (name_of[nearest] == labels).mean():.0f} % (both on {len(tested)} test digits)")

    pca = PCA(images, max(8, config.components))
    codes = (tested - pca.mean) @ pca.directions.T
    reconstructions = {}
    for k in sorted({1, 2, 8, config.components}):
        reconstructions[k] = codes[:, :k] @ pca.directions[:k] + pca.mean
        error = ((reconstructions[k] - tested) ** 2).sum(1).mean()
        share = 100 * pca.variances[:k].sum() / x.var(0, ddof=1).sum()
        print(f"PCA, {k:2} components: squared error {error:4.1f} per image, {share:.0f} % of the variance")

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3, width_ratios=(1, 1, 1.25))
    order = np.argsort(name_of, kind="stable")
    draw_images(axes[0, 0], centres[order].reshape(-1, 1, 28, 28), 5, "centres of k-means")
    directions = pca.directions[:20] / abs(pca.directions[:20]).max()
    draw_images(axes[1, 0], directions.reshape(-1, 1, 28, 28), 5, "directions of PCA, strongest first")
    rows = [tested, *reconstructions.values()]
    some = np.stack([row[:8] for row in rows]).reshape(-1, 1, 28, 28)
    draw_images(axes[1, 1], np.clip(some, 0, 1), 8, "digits; PCA with so many components", ["", *reconstructions])
    chosen = centres[nearest[:8]]
    draw_images(axes[0, 1], np.concatenate([tested[:8], chosen]).reshape(-1, 1, 28, 28), 8, "digits; nearest centres")
    plane = codes[:, :2].T
    axes[0, 2].scatter(*plane, c=nearest, cmap="tab20", s=8)
    axes[0, 2].set(title="in PCA's plane: a colour for each cluster of k-means")
    points = axes[1, 2].scatter(*plane, c=labels, cmap="tab10", vmin=-0.5, vmax=9.5, s=8)
    axes[1, 2].set(title="labels, which neither has seen")
    figure.colorbar(points, ax=axes[1, 2], ticks=range(10), label="class of the digit")
    for ax in axes[:, 2]:
        ax.set(xlabel="first component", ylabel="second component")
    save(figure, config.out, "02_kmeans_pca")


if __name__ == "__main__":
    run(main)
