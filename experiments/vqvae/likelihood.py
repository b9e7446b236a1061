"""Distributions of an image given the decoder's features: a head on the features, a log-probability and a mean.

Images are uint8. `DiscretizedLogistic` and `Categorical` are probabilities of the 256 values themselves: their negative
logarithm is in bits per dimension, and one can be compared with the other. `Gaussian` is a density, and cannot.

Scale of the loss: the mean negative log-likelihood per dimension in nats. FAdam's natural gradient does not depend on a
factor on the loss, nor does Adam's step while its epsilon is negligible, but clipping the global norm at 1 does; per
dimension, gradient norms are of the order of 1 whatever the image's size.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.core.errors import ConfigError

CHANNELS = 3
LEVELS = 256  # values of a channel of uint8 images


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

    def scaled(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Values 0 .. levels-1 as numbers from -1 to 1."""
        return images.to(dtype) * (2.0 / (self.levels - 1)) - 1.0

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
    """Normal density with fixed standard deviation: the squared error times 1/(2 sigma^2), up to a constant.

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
        mean: Tensor = self.head(features).float()  # (B, 3, H, W)
        return mean

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        z = (self.scaled(images, parameters.dtype) - parameters) / self.sigma
        constant = math.log(self.sigma) + 0.5 * math.log(2.0 * math.pi)
        return (-0.5 * z.square() - constant).flatten(1).sum(dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        return (parameters.clamp(-1.0, 1.0) + 1.0) / 2.0


class DiscretizedLogistic(Likelihood):
    """For each channel a mixture of logistic distributions, integrated over the values' bins (PixelCNN++,
    arXiv:1701.05517, equation 2). The lowest and the highest bin reach to infinity, so the probabilities sum to 1.

    Channels are independent given the features. PixelCNN++ lets green and blue depend on the true red value, which
    saves bits but asks less of the decoder's own means, and so of the reconstruction.

    Args:
        features: channels F of the decoder's features.
        mixtures: number M of components.
        min_log_scale: least logarithm of a component's scale, on the scale from -1 to 1.
        levels: number of values of a channel.

    Raises:
        ConfigError: an option is out of range.
    """

    discrete = True

    def __init__(self, features: int, mixtures: int = 3, min_log_scale: float = -7.0, levels: int = 256) -> None:
        super().__init__(features, levels)
        if mixtures < 1:
            raise ConfigError(f"likelihood.mixtures must be at least 1, got {mixtures}")
        if not -20.0 <= min_log_scale <= -2.0:
            raise ConfigError(f"likelihood.min_log_scale must lie between -20 and -2, got {min_log_scale}")
        self.mixtures, self.min_log_scale = mixtures, min_log_scale
        self.head = nn.Conv2d(features, CHANNELS * 3 * mixtures, 1)
        # Components of about a quarter of the range each, side by side: a first guess better than the uniform one.
        with torch.no_grad():
            bias = self.head.bias.view(CHANNELS, 3, mixtures)  # type: ignore[union-attr]
            bias[:, 0] = 0.0
            bias[:, 1] = torch.linspace(-0.3, 0.3, mixtures) if mixtures > 1 else 0.0
            bias[:, 2] = -2.0

    def forward(self, features: Tensor) -> Tensor:
        out = self.head(features).float()  # (B, 9 M, H, W)
        parameters: Tensor = out.unflatten(1, (CHANNELS, 3, self.mixtures))  # (B, 3, 3, M, H, W)
        return parameters

    def log_prob(self, parameters: Tensor, images: Tensor) -> Tensor:
        weights, means, log_scales = parameters.unbind(2)  # each (B, 3, M, H, W)
        log_scales = log_scales.clamp(min=self.min_log_scale)
        level = images.unsqueeze(2)  # (B, 3, 1, H, W)
        distance = self.scaled(level, means.dtype) - means
        inverse, half = torch.exp(-log_scales), 1.0 / (self.levels - 1)
        below = F.logsigmoid(inverse * (distance + half))  # log-probability of this value or a lower one
        above = F.logsigmoid(-inverse * (distance - half))  # ... of this value or a higher one
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): no cancellation in the tails.
        width = torch.log(-torch.expm1(-2.0 * half * inverse))
        bins = torch.where(level == 0, below, torch.where(level == self.levels - 1, above, below + above + width))
        values = torch.logsumexp(F.log_softmax(weights, dim=2) + bins, dim=2)  # (B, 3, H, W)
        return values.flatten(1).sum(dim=1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Mean of the mixture; each component's mean is cut to the range of values, in place of its tails."""
        weights, means, _ = parameters.unbind(2)
        return ((weights.softmax(dim=2) * means.clamp(-1.0, 1.0)).sum(dim=2) + 1.0) / 2.0


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
        parameters: Tensor = out.unflatten(1, (CHANNELS, -1)).movedim(2, -1)  # (B, 3, H, W, base + hidden)
        return parameters

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
        found: Tensor = (first + second).flatten(1).sum(dim=1)
        return found

    def mean(self, parameters: Tensor) -> Tensor:
        logits, pixel = parameters.split((self.base, self.hidden), dim=-1)
        first = logits.softmax(dim=-1)  # (B, 3, H, W, base)
        steps = torch.arange(self.base, device=logits.device)
        mean = torch.zeros_like(first[..., 0])
        for step in range(self.base):
            second = self._fine(pixel, torch.full_like(mean, step, dtype=torch.int64)).exp()
            mean += first[..., step] * (self.base * step + (second * steps).sum(dim=-1))
        return mean / (self.levels - 1)
