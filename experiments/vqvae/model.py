"""VQ-VAEs: a convolutional one and a vision transformer in the manner of ViT-VQGAN (Yu et al., arXiv:2110.04627)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.core.errors import ConfigError
from experiments.core.sharding import Layout
from experiments.vqvae.likelihood import CHANNELS, Likelihood
from experiments.vqvae.quantiser import Quantised, VectorQuantiser


class Output(NamedTuple):
    """`parameters` of the image's distribution, the quantiser's result, and the `vectors` (B, D, h, w) it was given."""

    parameters: Tensor
    quantised: Quantised
    vectors: Tensor


class VQVAE(nn.Module):
    """Encoder, quantiser, decoder, likelihood.

    The encoder's vectors are projected to the quantiser's dimensions and its codes back (factorised codes).

    Args:
        encoder: images (B, 3, H, W) from -1 to 1 -> (B, E, h, w).
        decoder: (B, E, h, w) -> features (B, F, H, W).
        quantiser: of (B, D, h, w).
        likelihood: of images given features.
        width: E.

    Raises:
        ConfigError: the parts do not fit.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        quantiser: VectorQuantiser,
        likelihood: Likelihood,
        width: int,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.quantiser, self.likelihood = quantiser, likelihood
        self.project_in = nn.Conv2d(width, quantiser.dim, 1)
        self.project_out = nn.Conv2d(quantiser.dim, width, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Vectors (B, D, h, w) of images (B, 3, H, W) uint8."""
        vectors: Tensor = self.project_in(self.encoder(self.likelihood.scaled(images)))
        return vectors

    def decode(self, codes: Tensor) -> Tensor:
        """Parameters of the image's distribution from codes (B, D, h, w)."""
        parameters: Tensor = self.likelihood(self.decoder(self.project_out(codes)))
        return parameters

    def forward(self, images: Tensor) -> Output:
        """
        Args:
            images: (B, 3, H, W) uint8.
        """
        vectors = self.encode(images)
        quantised = self.quantiser(vectors)
        return Output(self.decode(quantised.codes), quantised, vectors)

    def layout(self) -> Layout:
        blocks = [m for m in self.modules() if isinstance(m, Block | Residual)]
        return Layout(root=self, blocks=blocks, replicated=[self.quantiser.embedding])


class Residual(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        more: Tensor = self.layers(x)
        return x + more


class ConvVQVAE(VQVAE):
    """Strided convolutions down, residual blocks, and the mirror image up, ending in a pixel shuffle.

    Args:
        quantiser, likelihood: see `VQVAE`.
        width: channels of the inner layers.
        downsampling: pixels to a code along each axis, a power of 2 of at least 4.
        blocks: residual blocks on each side.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        quantiser: VectorQuantiser,
        likelihood: Likelihood,
        width: int = 64,
        downsampling: int = 4,
        blocks: int = 2,
    ) -> None:
        halvings = int(math.log2(downsampling)) if downsampling > 0 else 0
        if downsampling < 4 or 2**halvings != downsampling:
            raise ConfigError(f"model.downsampling must be a power of 2 of at least 4, got {downsampling}")
        if width < 1 or blocks < 0:
            raise ConfigError(f"model.width must be at least 1 and model.blocks at least 0, got {width} and {blocks}")
        down: list[nn.Module] = [nn.Conv2d(CHANNELS, width, 4, 2, 1)]
        for _ in range(halvings - 1):
            down += [nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1)]
        up: list[nn.Module] = [Residual(width) for _ in range(blocks)]
        for _ in range(halvings - 1):
            up += [nn.ReLU(), nn.ConvTranspose2d(width, width, 4, 2, 1)]
        # The last step up at half the resolution: a quarter of the work of a convolution at full resolution.
        up += [nn.ReLU(), nn.Conv2d(width, 4 * likelihood.features, 3, padding=1), nn.PixelShuffle(2), nn.ReLU()]
        super().__init__(
            nn.Sequential(*down, *(Residual(width) for _ in range(blocks)), nn.ReLU()),
            nn.Sequential(*up),
            quantiser,
            likelihood,
            width,
        )
        self.downsampling = downsampling


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, heads, N, d)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        more: Tensor = self.mlp(self.norm2(x))
        return x + more


class Transformer(nn.Module):
    """Blocks over a (B, dim, h, w) grid with learned positions, and a norm after them."""

    def __init__(self, grid: int, dim: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(grid * grid, dim))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2) + self.positions  # (B, N, dim)
        grid: Tensor = self.norm(self.blocks(tokens)).transpose(1, 2).unflatten(2, x.shape[2:])
        return grid


class ViTVQVAE(VQVAE):
    """Transformer encoder and decoder of equal size over non-overlapping patches.

    Args:
        quantiser, likelihood: see `VQVAE`; ViT-VQGAN has 8192 l2-normalised codes of 32 dimensions.
        image_size: edge of the images in pixels.
        patch: edge of a patch.
        dim, layers, heads, hidden: of each transformer.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        quantiser: VectorQuantiser,
        likelihood: Likelihood,
        image_size: int,
        patch: int = 8,
        dim: int = 512,
        layers: int = 8,
        heads: int = 8,
        hidden: int = 2048,
    ) -> None:
        if patch < 1 or image_size < patch or image_size % patch:
            raise ConfigError(f"model.image_size must be a multiple of model.patch={patch}, got {image_size}")
        if dim < 1 or heads < 1 or dim % heads:
            raise ConfigError(f"model.dim must be a multiple of model.heads={heads}, got {dim}")
        if layers < 1 or hidden < 1:
            raise ConfigError(f"model.layers and model.hidden must be at least 1, got {layers} and {hidden}")
        grid = image_size // patch
        encoder = nn.Sequential(
            nn.Conv2d(CHANNELS, dim, patch, stride=patch), Transformer(grid, dim, layers, heads, hidden)
        )
        decoder = nn.Sequential(
            Transformer(grid, dim, layers, heads, hidden),
            nn.Conv2d(dim, likelihood.features * patch**2, 1),
            nn.PixelShuffle(patch),
        )
        super().__init__(encoder, decoder, quantiser, likelihood, dim)
        self.image_size = image_size
