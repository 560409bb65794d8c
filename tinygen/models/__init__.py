"""The models, each on a page, in folders by the taxonomy of generative models (Goodfellow 2016, figure 9)."""

from tinygen.models.explicit.approximate import vae
from tinygen.models.explicit.approximate.vae import VAE
from tinygen.models.explicit.tractable import bernoulli_mixture, fvsbn, gated_pixelcnn, made, nade, pixelcnn, pixelrnn
from tinygen.models.explicit.tractable.bernoulli_mixture import BernoulliMixture
from tinygen.models.explicit.tractable.fvsbn import FVSBN
from tinygen.models.explicit.tractable.gated_pixelcnn import GatedPixelCNN
from tinygen.models.explicit.tractable.made import MADE
from tinygen.models.explicit.tractable.nade import NADE
from tinygen.models.explicit.tractable.pixelcnn import PixelCNN
from tinygen.models.explicit.tractable.pixelrnn import PixelRNN
from tinygen.models.features import autoencoder
from tinygen.models.features.autoencoder import Autoencoder
from tinygen.models.features.kmeans import KMeans
from tinygen.models.features.pca import PCA
from tinygen.models.images import bits_per_dim

RECIPES = {
    name: recipe
    for page in (bernoulli_mixture, fvsbn, nade, made, pixelcnn, pixelrnn, gated_pixelcnn, vae, autoencoder)
    for name, recipe in page.RECIPES.items()
}
__all__ = [
    "FVSBN",
    "MADE",
    "NADE",
    "PCA",
    "VAE",
    "Autoencoder",
    "BernoulliMixture",
    "GatedPixelCNN",
    "KMeans",
    "PixelCNN",
    "PixelRNN",
    "bits_per_dim",
]
