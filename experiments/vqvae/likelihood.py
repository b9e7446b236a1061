"""Distributions of an image given the decoder's features: each is a head on the features, a log-probability and a mean.

Images are uint8. `DiscretizedLogistic` and `Categorical` are probabilities of the 256 values themselves, so their negative
logarithm is in bits per dimension and one can be compared with the other; `Gaussian` is a density, and cannot.

Scale of the loss: the mean negative log-likelihood per dimension in nats. FAdam's natural gradient does not depend on a
factor on the loss, nor does Adam's step while its epsilon is negligible, but global-norm clipping at 1 does; per dimension,
gradient norms are of the order of 1 whatever the image's size.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.core.errors import ConfigError

CHANNELS = 3


class Likelihood(nn.Module):
    """Base class.

    Attributes:
        discrete: whether `log_prob` is a log-probability rather than a log-density.
        levels: number of values of a channel.
    """

    discrete: bool

    def __init__(self, features: int, levels: int = 256) -> None:
        super().__init__()
        if features < 1:
            raise ConfigError(f"likelihood.features must be at least 1, got {features}")
        if levels < 2 or levels > 256:
            raise ConfigError(f"likelihood.levels must lie between 2 and 256, got {levels}")
        self.features, self.levels = features, levels

    def scaled(self, images: Tensor) -> Tensor:
        """Values 0 .. levels-1 as numbers from -1 to 1."""
        return images.float() * (2.0 / (self.levels - 1)) - 1.0

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Features (B, F, H, W) to the distribution's parameters, float32."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        """Log-probability or log-density of each image (B, 3, H, W), in nats, summed over its dimensions: (B,).

        Both are of the whole image; a density is per unit of the scale from -1 to 1.
        """

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """Expected image (B, 3, H, W), from 0 to 1."""


class Gaussian(Likelihood):
    """Normal density with fixed standard deviation: the mean squared error, up to a constant and the factor 1/(2 sigma^2).

    Args:
        features: channels F of the decoder's features.
        sigma: standard deviation on the scale from -1 to 1. Around the size of the final error, so that the loss weighs
            against the codebook losses about as the discrete likelihoods' do.
        levels: number of values of a channel.

    Raises:
        ConfigError: an option is out of range.
    """

    discrete = False

    def __init__(self, features: int, sigma: float = 0.16, levels: int = 256) -> None:
        super().__init__(features, levels)
        if not sigma > 0.0:
            raise ConfigError(f"likelihood.sigma must be above 0, got {sigma}")
        self.sigma = sigma
        self.head = nn.Conv2d(features, CHANNELS, 1)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features).float()  # (B, 3, H, W)

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        z = (self.scaled(images) - parameters) / self.sigma
        constant = math.log(self.sigma) + 0.5 * math.log(2.0 * math.pi)
        return (-0.5 * z.square() - constant).flatten(1).sum(dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        return (parameters.clamp(-1.0, 1.0) + 1.0) / 2.0


class DiscretizedLogistic(Likelihood):
    """Mixture of logistic distributions, integrated over the bins of the values (PixelCNN++, arXiv:1701.05517, section 2).

    The lowest and the highest bin reach to infinity, so the probabilities of all values sum to one. Within a component
    green's mean shifts with red's value, and blue's with both: p(r, g, b) = p(r) p(g | r) p(b | r, g).

    Args:
        features: channels F of the decoder's features.
        mixtures: number of components.
        min_log_scale: least logarithm of a component's scale, on the scale from -1 to 1.
        levels: number of values of a channel.

    Raises:
        ConfigError: an option is out of range.
    """

    discrete = True

    def __init__(self, features: int, mixtures: int = 5, min_log_scale: float = -7.0, levels: int = 256) -> None:
        super().__init__(features, levels)
        if mixtures < 1:
            raise ConfigError(f"likelihood.mixtures must be at least 1, got {mixtures}")
        if not -20.0 <= min_log_scale < 0.0:
            raise ConfigError(f"likelihood.min_log_scale must lie between -20 and 0, got {min_log_scale}")
        self.mixtures, self.min_log_scale = mixtures, min_log_scale
        # Weight of the component, and for each channel mean, log-scale and a coupling coefficient.
        self.head = nn.Conv2d(features, mixtures * (1 + 3 * CHANNELS), 1)

    def forward(self, features: Tensor) -> Tensor:
        out = self.head(features).float()  # (B, 10 M, H, W)
        return out.unflatten(1, (1 + 3 * CHANNELS, self.mixtures))  # (B, 10, M, H, W)

    def _parts(self, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-weights (B, M, H, W); means, log-scales and couplings (B, 3, M, H, W)."""
        weights = F.log_softmax(parameters[:, 0], dim=1)
        means, log_scales, couplings = parameters[:, 1:].unflatten(1, (3, CHANNELS)).unbind(1)
        return weights, means, log_scales.clamp(min=self.min_log_scale), couplings.tanh()

    def _shifted(self, means: Tensor, couplings: Tensor, values: Tensor) -> Tensor:
        """Means given the values (B, 3, M or 1, H, W) of the channels before."""
        red, green = values[:, 0], values[:, 1]
        shift = torch.stack(
            (
                torch.zeros_like(means[:, 0]),
                couplings[:, 0] * red,
                couplings[:, 1] * red + couplings[:, 2] * green,
            ),
            dim=1,
        )
        return means + shift

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        weights, means, log_scales, couplings = self._parts(parameters)
        values = self.scaled(images).unsqueeze(2)  # (B, 3, 1, H, W)
        distance = values - self._shifted(means, couplings, values)
        inverse, half = torch.exp(-log_scales), 1.0 / (self.levels - 1)
        upper, lower = inverse * (distance + half), inverse * (distance - half)
        level = images.unsqueeze(2)
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), exact in the tails as well.
        width = torch.log(-torch.expm1(lower - upper))
        left, right = F.logsigmoid(upper), F.logsigmoid(-lower)
        inner = left + right + width
        edge = torch.where(level == 0, left, right)
        bins = torch.where((level == 0) | (level == self.levels - 1), edge, inner)  # (B, 3, M, H, W)
        pixels = torch.logsumexp(weights + bins.sum(dim=1), dim=1)  # (B, H, W)
        return pixels.flatten(1).sum(dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Mean of the mixture; each component's mean is cut to the range of values, in place of its tails."""
        weights, means, _, couplings = self._parts(parameters)
        red = means[:, 0].clamp(-1.0, 1.0)
        green = (means[:, 1] + couplings[:, 0] * red).clamp(-1.0, 1.0)
        blue = (means[:, 2] + couplings[:, 1] * red + couplings[:, 2] * green).clamp(-1.0, 1.0)
        components = torch.stack((red, green, blue), dim=1)  # (B, 3, M, H, W)
        return ((weights.exp().unsqueeze(1) * components).sum(dim=2) + 1.0) / 2.0


class Categorical(Likelihood):
    """Any distribution over the 256 values of each channel, in two steps of 16: p(v) = p(v // 16) p(v % 16 | v // 16).

    One softmax over 256 values needs 768 outputs a pixel; here it is 48 for the first steps and, with the first step's
    value known, 48 for the second ones. All 16 x 16 are only needed for the mean, so in evaluation. The second step's
    logits come from a small hidden layer that adds the pixel's features and an embedding of the first step.

    Args:
        features: channels F of the decoder's features.
        hidden: width of the hidden layer, per channel.
        levels: number of values of a channel, a square.

    Raises:
        ConfigError: an option is out of range.
    """

    discrete = True

    def __init__(self, features: int, hidden: int = 16, levels: int = 256) -> None:
        super().__init__(features, levels)
        self.base = math.isqrt(levels)
        if self.base**2 != levels:
            raise ConfigError(f"likelihood.levels must be a square, got {levels}")
        if hidden < 1:
            raise ConfigError(f"likelihood.hidden must be at least 1, got {hidden}")
        self.hidden = hidden
        self.head = nn.Conv2d(features, CHANNELS * (self.base + hidden), 1)
        self.coarse = nn.Embedding(CHANNELS * self.base, hidden)
        self.fine = nn.Parameter(torch.empty(CHANNELS, hidden, self.base))
        self.fine_bias = nn.Parameter(torch.zeros(CHANNELS, self.base))
        nn.init.normal_(self.fine, std=hidden**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        out = self.head(features).float()
        return out.unflatten(1, (CHANNELS, -1)).movedim(2, -1)  # (B, 3, H, W, base + hidden)

    def _fine(self, pixel: Tensor, coarse: Tensor) -> Tensor:
        """Log-probabilities (B, 3, H, W, base) of the second step, given the first one's values (B, 3, H, W)."""
        offset = self.base * torch.arange(CHANNELS, device=coarse.device).view(-1, 1, 1)
        h = F.relu(pixel + self.coarse(coarse + offset))  # (B, 3, H, W, hidden)
        logits = torch.einsum("bcyxh,chk->bcyxk", h, self.fine) + self.fine_bias[:, None, None]
        return logits.log_softmax(dim=-1)

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        logits, pixel = parameters.split((self.base, self.hidden), dim=-1)
        coarse, fine = images.long() // self.base, images.long() % self.base
        first = logits.log_softmax(dim=-1).gather(-1, coarse.unsqueeze(-1))
        second = self._fine(pixel, coarse).gather(-1, fine.unsqueeze(-1))
        return (first + second).flatten(1).sum(dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        logits, pixel = parameters.split((self.base, self.hidden), dim=-1)
        first = logits.softmax(dim=-1)  # (B, 3, H, W, base)
        steps = torch.arange(self.base, device=logits.device)
        mean = torch.zeros_like(first[..., 0])
        for step in range(self.base):
            second = self._fine(pixel, torch.full_like(mean, step, dtype=torch.int64)).exp()
            mean += first[..., step] * (self.base * step + (second * steps).sum(dim=-1))
        return mean / (self.levels - 1)
