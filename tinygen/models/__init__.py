"""The models, each on a page, in folders by the taxonomy of generative models (Goodfellow 2016, figure 9)."""

from tinygen.models.explicit.approximate import vae
from tinygen.models.explicit.approximate.vae import VAE
from tinygen.models.explicit.tractable import gated_pixelcnn, pixelcnn, pixelrnn
from tinygen.models.explicit.tractable.ffjord import FFJORD
from tinygen.models.explicit.tractable.gated_pixelcnn import GatedPixelCNN
from tinygen.models.explicit.tractable.glow import Glow
from tinygen.models.explicit.tractable.nice import NICE
from tinygen.models.explicit.tractable.pixelcnn import PixelCNN
from tinygen.models.explicit.tractable.pixelrnn import PixelRNN
from tinygen.models.explicit.tractable.realnvp import RealNVP
from tinygen.models.features import autoencoder
from tinygen.models.features.autoencoder import Autoencoder
from tinygen.models.features.kmeans import KMeans
from tinygen.models.features.pca import PCA
from tinygen.models.images import bits_per_dim

RECIPES = {
    name: recipe
    for page in (pixelcnn, pixelrnn, gated_pixelcnn, vae, autoencoder)  # nice, realnvp, glow: once their weights ship
    for name, recipe in page.RECIPES.items()
}
__all__ = [
    "FFJORD",
    "NICE",
    "PCA",
    "VAE",
    "Autoencoder",
    "GatedPixelCNN",
    "Glow",
    "KMeans",
    "PixelCNN",
    "PixelRNN",
    "RealNVP",
    "bits_per_dim",
]
