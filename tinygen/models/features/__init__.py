"""Structure found without labels, and without a density: autoencoder, principal components, k-means."""
