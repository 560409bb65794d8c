"""Models that find structure without labels and without a density: autoencoder, PCA, k-means."""
