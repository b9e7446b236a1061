"""A Conformer encoder with convolutional subsampling and a CTC head (Gulati et al., arXiv:2005.08100)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchaudio.models import Conformer

from experiments.core.errors import ConfigError
from experiments.core.sharding import Layout


def subsampled(lengths: Tensor) -> Tensor:
    """Frames left of `lengths` frames after the two convolutions of stride 2."""
    for _ in range(2):
        lengths = (lengths - 1) // 2
    return lengths.clamp(min=0)


class Subsampling(nn.Module):
    """Two 3x3 convolutions of stride 2 over time and frequency, then a projection: 4 times fewer frames."""

    def __init__(self, n_mels: int, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        first, second = channels
        self.conv = nn.Sequential(
            nn.Conv2d(1, first, 3, stride=2), nn.ReLU(), nn.Conv2d(first, second, 3, stride=2), nn.ReLU()
        )
        frequencies = ((n_mels - 1) // 2 - 1) // 2
        self.project = nn.Linear(second * frequencies, dim)

    def forward(self, features: Tensor) -> Tensor:
        x = self.conv(features.unsqueeze(1))  # (B, T, F) -> (B, C, T/4, F/4)
        projected: Tensor = self.project(x.transpose(1, 2).flatten(2))  # (B, T/4, D)
        return projected


class FrameNorm(nn.LayerNorm):
    """Normalises the channels of each frame of (B, D, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class PaddedGLU(nn.GLU):
    """A gated linear unit over the channels of (B, 2 D, T) whose output is 0 where `padding` (B, T) is true.

    The depthwise convolution behind it then sees the same of an utterance with and without padding.
    """

    padding: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(self.padding[:, None], 0.0)


class PaddedBatchNorm(nn.BatchNorm1d):
    """Batch norm of (B, D, T) whose statistics in training are of the frames where `padding` (B, T) is false."""

    padding: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()  # (B, D, T)
        kept = (~self.padding)[:, None].to(wide.dtype)  # (B, 1, T)
        count = kept.sum()
        mean = (wide * kept).sum((0, 2)) / count  # (D,)
        centred = wide - mean[:, None]
        variance = (centred.square() * kept).sum((0, 2)) / count  # (D,)
        with torch.no_grad():
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean, self.momentum)  # type: ignore[union-attr, arg-type]
            self.running_var.lerp_(unbiased, self.momentum)  # type: ignore[union-attr, arg-type]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * (variance + self.eps).rsqrt()  # (D,)
        return (centred * scale[:, None] + self.bias[:, None]).to(x.dtype)


class ConformerCTC(nn.Module):
    """Log-mel features to log-probabilities of symbols, CTC's blank among them.

    Args:
        vocab_size: symbols, the blank included.
        n_mels: log-mel channels of a frame.
        dim: width D of the encoder.
        layers, heads, kernel: number of Conformer blocks, attention heads, width of the depthwise convolution.
        ffn_ratio: width of the feed-forward layers over `dim`.
        channels: of the two subsampling convolutions.
        dropout: rate everywhere in the encoder.
        norm: in the convolution modules: "batch", over all frames that are no padding, or "layer", over the channels of
            each frame, which keeps no statistics and so is the same however a batch is spread over processes.

    No output depends on padding, nor, in evaluation or with `norm="layer"`, on the other utterances of a batch.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(
        self,
        vocab_size: int,
        n_mels: int = 80,
        dim: int = 96,
        layers: int = 4,
        heads: int = 4,
        kernel: int = 15,
        ffn_ratio: int = 4,
        channels: Sequence[int] = (16, 32),
        dropout: float = 0.0,
        norm: Literal["batch", "layer"] = "batch",
    ) -> None:
        super().__init__()
        for name, value in (("vocab_size", vocab_size), ("layers", layers), ("ffn_ratio", ffn_ratio)):
            if value < 1:
                raise ConfigError(f"model.{name} must be at least 1, got {value}")
        if dim < 1 or heads < 1 or dim % heads:
            raise ConfigError(f"model.dim must be a multiple of model.heads={heads}, got {dim}")
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"model.kernel must be an odd number of at least 1, got {kernel}")
        if n_mels < 7:
            raise ConfigError(f"model.n_mels must be at least 7, got {n_mels}")
        if len(channels) != 2 or min(channels) < 1:
            raise ConfigError(f"model.channels must be two numbers of at least 1, got {list(channels)}")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"model.dropout must be at least 0 and less than 1, got {dropout}")
        if norm not in ("batch", "layer"):
            raise ConfigError(f"model.norm must be batch or layer, got {norm!r}")
        self.vocab_size, self.n_mels = vocab_size, n_mels
        self.subsampling = Subsampling(n_mels, channels, dim)
        self.dropout = nn.Dropout(dropout)
        self.encoder = Conformer(dim, heads, ffn_ratio * dim, layers, kernel, dropout=dropout)
        for layer in self.encoder.conformer_layers:
            steps = layer.conv_module.sequential
            for place, step in enumerate(steps):
                if isinstance(step, nn.GLU):
                    steps[place] = PaddedGLU(dim=step.dim)
                elif isinstance(step, nn.BatchNorm1d):
                    steps[place] = PaddedBatchNorm(dim) if norm == "batch" else FrameNorm(dim)
        self.head = nn.Linear(dim, vocab_size)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            features: (B, T, n_mels) float, zero-padded.
            lengths: (B,) int64, frames of each utterance; the longest must be T.

        Returns:
            Log-probabilities (B, T', vocab_size) in float32 and their lengths (B,), T' about T/4.
        """
        x = self.dropout(self.subsampling(features))  # (B, T', D)
        lengths = subsampled(lengths)
        # As the encoder's own forward does, but without asking the device for the longest length.
        padding = torch.arange(x.shape[1], device=lengths.device) >= lengths[:, None]  # (B, T')
        for module in self.encoder.modules():
            if isinstance(module, PaddedGLU | PaddedBatchNorm):
                module.padding = padding
        x = x.transpose(0, 1)
        for layer in self.encoder.conformer_layers:
            x = layer(x, padding)  # (T', B, D)
        return torch.log_softmax(self.head(x.transpose(0, 1)).float(), dim=-1), lengths  # (B, T', V)

    def layout(self) -> Layout:
        return Layout(root=self, blocks=list(self.encoder.conformer_layers))
