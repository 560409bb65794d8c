"""The models, each on a page, in folders by the taxonomy of generative models (Goodfellow 2016, figure 9)."""

import sys

from tinygen.models.explicit.approximate.categorical_vae import CategoricalVAE
from tinygen.models.explicit.approximate.diffusion import Diffusion
from tinygen.models.explicit.approximate.mixture_vae import MixturePosteriorVAE, MixturePriorVAE
from tinygen.models.explicit.approximate.rbm import RBM
from tinygen.models.explicit.approximate.tcvae import TCVAE
from tinygen.models.explicit.approximate.vae import VAE
from tinygen.models.explicit.tractable.bernoulli_mixture import BernoulliMixture
from tinygen.models.explicit.tractable.ffjord import FFJORD
from tinygen.models.explicit.tractable.fvsbn import FVSBN
from tinygen.models.explicit.tractable.gated_pixelcnn import GatedPixelCNN
from tinygen.models.explicit.tractable.glow import Glow
from tinygen.models.explicit.tractable.made import MADE
from tinygen.models.explicit.tractable.nade import NADE
from tinygen.models.explicit.tractable.nice import NICE
from tinygen.models.explicit.tractable.pixelcnn import PixelCNN
from tinygen.models.explicit.tractable.pixelcnnpp import PixelCNNpp
from tinygen.models.explicit.tractable.pixelrnn import PixelRNN
from tinygen.models.explicit.tractable.realnvp import RealNVP
from tinygen.models.explicit.tractable.transformer import PixelTransformer
from tinygen.models.features.autoencoder import Autoencoder
from tinygen.models.features.kmeans import KMeans
from tinygen.models.features.pca import PCA
from tinygen.models.images import bits_per_dim
from tinygen.models.implicit.gan import GAN
from tinygen.models.implicit.gsn import GSN

_MODELS = (
    *(BernoulliMixture, FVSBN, NADE, MADE, PixelCNN, PixelRNN, GatedPixelCNN, PixelCNNpp, PixelTransformer),
    *(NICE, RealNVP, Glow, VAE, MixturePriorVAE, CategoricalVAE, TCVAE, Diffusion, RBM, GAN, GSN, Autoencoder),
)
RECIPES = {name: recipe for model in _MODELS for name, recipe in sys.modules[model.__module__].RECIPES.items()}
__all__ = [
    "FFJORD",
    "FVSBN",
    "GAN",
    "GSN",
    "MADE",
    "NADE",
    "NICE",
    "PCA",
    "RBM",
    "TCVAE",
    "VAE",
    "Autoencoder",
    "BernoulliMixture",
    "CategoricalVAE",
    "Diffusion",
    "GatedPixelCNN",
    "Glow",
    "KMeans",
    "MixturePosteriorVAE",
    "MixturePriorVAE",
    "PixelCNN",
    "PixelCNNpp",
    "PixelRNN",
    "PixelTransformer",
    "RealNVP",
    "bits_per_dim",
]
