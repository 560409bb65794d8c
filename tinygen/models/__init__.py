"""The models, each on a page."""

from tinygen.models.autoencoder import Autoencoder
from tinygen.models.gated_pixelcnn import GatedPixelCNN
from tinygen.models.images import bits_per_dim
from tinygen.models.pca import PCA
from tinygen.models.pixelcnn import PixelCNN
from tinygen.models.pixelrnn import PixelRNN
from tinygen.models.vae import VAE

__all__ = ["PCA", "VAE", "Autoencoder", "GatedPixelCNN", "PixelCNN", "PixelRNN", "bits_per_dim"]
