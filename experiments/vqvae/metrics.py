"""Metrics of reconstructions and of the codebook, each over a whole split."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity


class Scores(NamedTuple):
    """Of a split.

    Attributes:
        metrics: by name.
        photographs: those of each photograph (P,), by name.
        tiles: (P,) numbers of tiles.
        counts: (K,) how often each code was used.
    """

    metrics: dict[str, Tensor]
    photographs: dict[str, Tensor]
    tiles: Tensor
    counts: Tensor


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


class SumPerPhotograph(Metric):
    """Sums, over each photograph's tiles, of values given with the numbers of their photographs: (P,) float64."""

    full_state_update = False
    total: Tensor

    def __init__(self, photographs: int) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(photographs, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, numbers: Tensor) -> None:
        self.total.index_add_(0, numbers, values.to(self.total.dtype))

    def compute(self) -> Tensor:
        return self.total.clone()


# A mean squared error below this, 100 dB, counts as this: a perfect photograph has a PSNR too.
_LEAST_ERROR = 1e-10


class SplitScores(nn.Module):
    """All metrics of one split.

    Errors are those of photographs, since the tiles of one photograph are no independent samples. Bits per dimension,
    mean squared error and SSIM of a photograph are means over its tiles; its PSNR is that of its mean squared error.
    The split's values are means over its photographs, which all weigh the same; one of which no tile was seen, since
    Lightning's `limit_val_batches` cut the split short, is left out.

    SSIM follows torchmetrics at the border: Gaussian windows of 11x11 pixels (sigma 1.5) stand on every pixel, and
    where they reach over the border they see the tile mirrored. With windows inside the tile only, as its authors have
    it, tiles of 32x32 pixels differ by about 0.02.

    The codebook's use, LPIPS and rFID are of the whole split.

    Args:
        codes: size of the codebook.
        discrete: whether bits per dimension can be told.
        photographs: number P of photographs in the split.
        perceptual: further metrics of (reconstructions, images), by name; see `perceptual_metrics`.
    """

    def __init__(
        self, codes: int, discrete: bool, photographs: int, perceptual: dict[str, Metric] | None = None
    ) -> None:
        super().__init__()
        self.tiles, self.mse, self.ssim = (SumPerPhotograph(photographs) for _ in range(3))
        self.bits = SumPerPhotograph(photographs) if discrete else None
        self.codebook = CodebookUse(codes)
        self.perceptual = nn.ModuleDict(perceptual or {})

    def update(
        self, bits: Tensor | None, reconstructions: Tensor, images: Tensor, indices: Tensor, photographs: Tensor
    ) -> None:
        """
        Args:
            bits: (B,) bits per dimension of each tile; None for a density.
            reconstructions: (B, 3, H, W) from 0 to 1.
            images: (B, 3, H, W) uint8.
            indices: (B, h, w).
            photographs: (B,) int64, the number of each tile's photograph, from 0 to P - 1.
        """
        originals = images.float() / 255.0
        if self.bits is not None and bits is not None:
            self.bits.update(bits, photographs)
        self.tiles.update(torch.ones_like(photographs), photographs)
        self.mse.update((reconstructions - originals).square().flatten(1).mean(dim=1), photographs)
        similarity = structural_similarity_index_measure(reconstructions, originals, data_range=1.0, reduction="none")
        assert isinstance(similarity, Tensor)
        self.ssim.update(similarity.view(-1), photographs)
        self.codebook.update(indices)
        for metric in self.perceptual.values():
            if isinstance(metric, FrechetInceptionDistance):
                metric.update(originals, real=True)
                metric.update(reconstructions, real=False)
            else:
                metric.update(reconstructions, originals)  # type: ignore[operator]

    def compute_and_reset(self) -> Scores:
        tiles = self.tiles.compute()
        each = {"bits_per_dim": self.bits.compute() / tiles} if self.bits is not None else {}
        each |= {"mse": self.mse.compute() / tiles, "ssim": self.ssim.compute() / tiles}
        each["psnr"] = -10.0 * torch.log10(each["mse"].clamp(min=_LEAST_ERROR))
        counts: Tensor = self.codebook.compute()
        found = {name: values[tiles > 0].mean() for name, values in each.items()}
        found["codebook_perplexity"] = perplexity(counts)
        found["codebook_usage"] = (counts > 0).float().mean()
        found |= {name: metric.compute() for name, metric in self.perceptual.items()}  # type: ignore[operator]
        for module in self.modules():
            if isinstance(module, Metric):
                module.reset()
        return Scores(found, each, tiles, counts)


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
        The metrics by name, and the reasons why others are left out.
    """
    found, reasons = {}, {}
    for name, (missing, make) in PERCEPTUAL.items():
        reason = missing()
        if reason:
            reasons[name] = reason
        else:
            found[name] = make()
    return found, reasons
