"""Pictures that belong beside a run record.

`reconstruction_picture` writes a grid that `experiments.analysis.samples` takes apart again: its layout stands in the
PNG's text fields `tile`, `gap`, `columns` and `rows` (names from top to bottom, separated by commas).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, PngImagePlugin
from torch import Tensor

ROWS = ("original", "reconstruction")
GAP = 2


def reconstruction_picture(path: str, originals: Tensor, reconstructions: Tensor) -> None:
    """Write originals (B, 3, S, S) uint8 above their reconstructions."""
    size, columns = originals.shape[-1], len(originals)
    step = size + GAP
    canvas = np.full((2 * step - GAP, columns * step - GAP, 3), 255, dtype=np.uint8)
    for row, images in enumerate((originals, reconstructions)):
        for column, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            canvas[row * step : row * step + size, column * step : column * step + size] = image
    layout = PngImagePlugin.PngInfo()
    for key, value in (("tile", size), ("gap", GAP), ("columns", columns), ("rows", ",".join(ROWS))):
        layout.add_text(key, str(value))
    Image.fromarray(canvas).save(path, pnginfo=layout, optimize=True)


def codebook_plot(path: str, counts: npt.NDArray[np.int64], perplexity: float) -> None:
    """Write a plot of the codes' shares, the most used first, beside the share of a uniform use."""
    from matplotlib.figure import Figure

    share = np.sort(counts)[::-1] / max(1, counts.sum())
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.fill_between(np.arange(len(share)), share, step="mid", alpha=0.6)
    axes.axhline(1.0 / len(share), color="black", linewidth=0.8, linestyle="--", label="uniform")
    axes.set_xlabel(f"code, of {len(share)}, by use")
    axes.set_ylabel("share of positions")
    used = int((counts > 0).sum())
    axes.set_title(f"{used} of {len(share)} codes in use, perplexity {perplexity:.1f}", fontsize=10)
    axes.legend(frameon=False)
    # No software version or date in the file: equal runs give equal files.
    figure.savefig(path, dpi=100, metadata={"Software": None})
