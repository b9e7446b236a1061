"""Metrics of reconstructions and of the codebook, each over a whole split."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity


class CodebookUse(Metric):
    """How often each code was used: (K,) int64."""

    full_state_update = False
    counts: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        self.counts += torch.bincount(indices.flatten(), minlength=len(self.counts))

    def compute(self) -> Tensor:
        return self.counts.clone()


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of counts (K,): K for a uniform use, 1 for a single code."""
    share = counts / counts.sum()
    return torch.exp(-torch.xlogy(share, share).sum())  # 0 log 0 = 0


class MeanPerImage(Metric):
    """Mean over images of values that were given a batch at a time."""

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        self.total += values.double().sum()
        self.images += values.numel()

    def compute(self) -> Tensor:
        return self.total / self.images


class SplitScores(nn.Module):
    """All metrics of one split.

    PSNR is that of the mean squared error over the split, not the mean of the images' PSNRs: a few images that are
    all but perfect do not rule it.

    Args:
        codes: size of the codebook.
        discrete: whether bits per dimension can be told.
        perceptual: further metrics of (reconstructions, images), by name; see `perceptual_metrics`.
    """

    def __init__(self, codes: int, discrete: bool, perceptual: dict[str, Metric] | None = None) -> None:
        super().__init__()
        self.bits = MeanPerImage() if discrete else None
        self.mse, self.codebook = MeanPerImage(), CodebookUse(codes)
        self.psnr = PeakSignalNoiseRatio(data_range=1.0)
        self.ssim = StructuralSimilarityIndexMeasure(data_range=1.0)
        self.perceptual = nn.ModuleDict(perceptual or {})

    def update(self, bits: Tensor | None, reconstructions: Tensor, images: Tensor, indices: Tensor) -> None:
        """
        Args:
            bits: (B,) bits per dimension of each image; None for a density.
            reconstructions: (B, 3, H, W) from 0 to 1.
            images: (B, 3, H, W) uint8.
            indices: (B, h, w).
        """
        originals = images.float() / 255.0
        if self.bits is not None and bits is not None:
            self.bits.update(bits)
        self.mse.update((reconstructions - originals).square().flatten(1).mean(dim=1))
        self.psnr.update(reconstructions, originals)
        self.ssim.update(reconstructions, originals)
        self.codebook.update(indices)
        for metric in self.perceptual.values():
            if isinstance(metric, FrechetInceptionDistance):
                metric.update(originals, real=True)
                metric.update(reconstructions, real=False)
            else:
                metric.update(reconstructions, originals)  # type: ignore[operator]

    def compute_and_reset(self) -> tuple[dict[str, Tensor], Tensor]:
        """The metrics by name, and the counts (K,) of the codes."""
        counts: Tensor = self.codebook.compute()
        found: dict[str, Tensor] = {"bits_per_dim": self.bits.compute()} if self.bits is not None else {}
        found |= {
            "mse": self.mse.compute(),
            "psnr": self.psnr.compute(),
            "ssim": torch.as_tensor(self.ssim.compute()),
            "codebook_perplexity": perplexity(counts),
            "codebook_usage": (counts > 0).float().mean(),
        }
        found |= {name: metric.compute() for name, metric in self.perceptual.items()}  # type: ignore[operator]
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()
        return found, counts


def _weights(pattern: str) -> bool:
    return any((Path(torch.hub.get_dir()) / "checkpoints").glob(pattern))


def _missing_lpips() -> str:
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed"
    return "" if _weights("alexnet-*.pth") else "AlexNet's weights are not in torch's hub folder"


def _missing_rfid() -> str:
    if importlib.util.find_spec("torch_fidelity") is None:
        return "torch-fidelity is not installed"
    return "" if _weights("weights-inception-*.pth") else "Inception's weights are not in torch's hub folder"


def _lpips() -> Metric:
    return LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)


def _rfid() -> Metric:
    return FrechetInceptionDistance(feature=2048, normalize=True)


PERCEPTUAL: dict[str, tuple[Callable[[], str], Callable[[], Metric]]] = {
    "lpips": (_missing_lpips, _lpips),
    "rfid": (_missing_rfid, _rfid),
}


def perceptual_metrics() -> tuple[dict[str, Metric], dict[str, str]]:
    """LPIPS and rFID, as far as their networks' weights are on this machine; nothing is downloaded.

    Returns:
        The metrics by name, and for those that are left out, why.
    """
    found, reasons = {}, {}
    for name, (missing, make) in PERCEPTUAL.items():
        reason = missing()
        if reason:
            reasons[name] = reason
        else:
            found[name] = make()
    return found, reasons
