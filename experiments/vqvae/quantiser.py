"""Vector quantisation (van den Oord et al., arXiv:1711.00937); the codebook learns by gradient or moving averages.

Our own, because vector-quantize-pytorch (1.32) does not give what the comparison needs: with a learnable codebook its
one weight multiplies the codebook term as well as the commitment term, and it refuses a learnable codebook together
with l2-normalised codes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.core.errors import ConfigError
from experiments.core.sharding import whole

Learning = Literal["gradient", "ema"]
Seeding = Literal["random", "spread"]


class Quantised(NamedTuple):
    """Result of quantising (B, D, h, w) vectors.

    Attributes:
        codes: (B, D, h, w), the chosen codes; their gradient goes straight through to the input.
        indices: (B, h, w) int64.
        codebook_loss: mean squared distance of the codes to the fixed vectors; 0 for an EMA codebook.
        commitment_loss: mean squared distance of the vectors to the fixed codes, without beta.
    """

    codes: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor


class Restart(NamedTuple):
    """Codes given a new place. `donors` holds, for each, the code that its new vector was assigned to."""

    codes: Tensor
    donors: Tensor


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (N,) of the code of (K, D) nearest to each vector of (N, D)."""
    # The squares of the vectors are the same for every code.
    return (codebook.square().sum(dim=1) - 2.0 * vectors @ codebook.T).argmin(dim=1)


def spread(vectors: Tensor, k: int, random: torch.Generator) -> Tensor:
    """Rows (k,) of `vectors` (N, D), each drawn by its squared distance to those before: the seeds of k-means++."""
    rows = torch.empty(k, dtype=torch.int64)
    rows[0] = torch.randint(len(vectors), (), generator=random)
    squares = vectors.square().sum(dim=1)
    least = torch.full_like(squares, torch.inf)
    uniform = torch.rand(k, generator=random, dtype=torch.float64)
    for i in range(1, k):
        newest = vectors[rows[i - 1]]
        least = torch.minimum(least, (squares - 2.0 * vectors @ newest + newest.square().sum()).clamp(min=0.0))
        total = least.double().cumsum(dim=0)
        at = torch.searchsorted(total, uniform[i].to(total.device) * total[-1], right=True)
        rows[i] = at.clamp(max=len(vectors) - 1)
    return rows


def kmeans(
    vectors: Tensor,
    k: int,
    iterations: int,
    normalise: bool = False,
    seeding: Seeding = "random",
    random: torch.Generator | None = None,
) -> Tensor:
    """Lloyd's algorithm from `k` of the vectors. Empty clusters stay where they are.

    Args:
        vectors: (N, D).
        normalise: put the means back on the unit sphere.
        seeding: "random": the first means are drawn uniformly; "spread": far from one another, as k-means++ draws them.
        random: of the draws, on the CPU.

    Returns:
        Means (k, D).
    """
    random = random or torch.Generator().manual_seed(0)
    n = len(vectors)
    if seeding == "spread" and k <= n:
        order = spread(vectors, k, random)
    else:
        order = torch.cat([torch.randperm(n, generator=random) for _ in range(-(-k // n))])[:k]
    means = vectors[order.to(vectors.device)].clone()
    if k > n:
        # Each vector was drawn several times; a little noise keeps the copies apart.
        means += 1e-3 * vectors.std() * torch.randn(means.shape, generator=random).to(means)
    for _ in range(iterations):
        assigned = nearest(vectors, means)
        counts = torch.bincount(assigned, minlength=k)
        sums = torch.zeros_like(means).index_add_(0, assigned, vectors)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
        if normalise:
            means = F.normalize(means, dim=1)
    return means


def _everywhere(tensor: Tensor) -> Tensor:
    """The sum over all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


def _from_first(tensor: Tensor) -> Tensor:
    """The first process's tensor, on all processes."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        tensor = tensor.contiguous()
        torch.distributed.broadcast(tensor, src=0)
    return tensor


class VectorQuantiser(nn.Module):
    """K codes of D dimensions.

    Args:
        codes: K.
        dim: D.
        learning: "gradient": the optimizer learns the codebook from the codebook loss; "ema": the codes follow the mean
            of their vectors (van den Oord et al., appendix A.1), past the optimizer.
        normalise: vectors and codes are put on the unit sphere first (ViT-VQGAN, arXiv:2110.04627).
        start_after: training batches whose vectors pass unquantised, with both losses 0. Quantised from the start, an
            encoder that tells nothing apart yet finds a few codes, and may never learn colours.
        kmeans_iterations: the codebook starts from k-means of the first quantised training batch, or of the vectors
            that `start` is given before it; 0: at random.
        kmeans_seeding: how k-means starts; see `kmeans`.
        restart_after: a code that no training batch used for so many batches in a row moves to a random vector of the
            newest batch; 0: never. See `restart_idle`.
        restart_below: so does a code whose moving average of use (see `ema_decay`) falls below this share of the mean
            use, 1/K; 0: never.
        restart_until: training batches after which no code moves any more; 0: no end.
        ema_decay: of the moving averages.

    Raises:
        ConfigError: an option is out of range.
    """

    batches: Tensor
    idle: Tensor
    use: Tensor
    ema_counts: Tensor
    ema_sums: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        learning: Learning = "gradient",
        normalise: bool = False,
        start_after: int = 0,
        kmeans_iterations: int = 10,
        kmeans_seeding: Seeding = "random",
        restart_after: int = 0,
        restart_below: float = 0.0,
        restart_until: int = 0,
        ema_decay: float = 0.99,
    ) -> None:
        super().__init__()
        if learning not in ("gradient", "ema"):
            raise ConfigError(f"quantiser.learning must be gradient or ema, got {learning!r}")
        if kmeans_seeding not in ("random", "spread"):
            raise ConfigError(f"quantiser.kmeans_seeding must be random or spread, got {kmeans_seeding!r}")
        if not 0.0 <= restart_below < 1.0:
            raise ConfigError(f"quantiser.restart_below must be at least 0 and below 1, got {restart_below}")
        for name, value, least in (
            ("codes", codes, 2),
            ("dim", dim, 1),
            ("start_after", start_after, 0),
            ("kmeans_iterations", kmeans_iterations, 0),
            ("restart_after", restart_after, 0),
            ("restart_until", restart_until, 0),
        ):
            if value < least:
                raise ConfigError(f"quantiser.{name} must be at least {least}, got {value}")
        if not 0.0 <= ema_decay < 1.0:
            raise ConfigError(f"quantiser.ema_decay must be at least 0 and below 1, got {ema_decay}")
        self.codes, self.dim, self.learning, self.normalise = codes, dim, learning, normalise
        self.start_after, self.kmeans_iterations = start_after, kmeans_iterations
        self.kmeans_seeding, self.ema_decay = kmeans_seeding, ema_decay
        self.restart_after, self.restart_below, self.restart_until = restart_after, restart_below, restart_until
        # An embedding, so that weight decay can leave it out like any other (experiments.core.optim).
        self.embedding = nn.Embedding(codes, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.register_buffer("batches", torch.tensor(0))
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.int64))
        if restart_below:
            self.register_buffer("use", torch.full((codes,), 1.0 / codes))
        if learning == "ema":
            self.embedding.weight.requires_grad_(False)
            self.register_buffer("ema_counts", torch.ones(codes))
            self.register_buffer("ema_sums", self.embedding.weight.detach().clone())
        self._newest: tuple[Tensor, Tensor] | None = None
        self._started = False  # known without asking the device, once it is true
        self._placed = False
        # A resumed run is built with the same seed: the draws depend only on it and on the number of the batch.
        self._seed = torch.initial_seed()

    def _random(self, purpose: int) -> torch.Generator:
        """For the draws of this training batch."""
        seeds = np.random.SeedSequence([self._seed & (2**64 - 1), int(self.batches), purpose])
        return torch.Generator().manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))

    @property
    def codebook(self) -> Tensor:
        """(K, D) as compared with the vectors: on the unit sphere if `normalise`."""
        weight = whole(self.embedding.weight)
        return F.normalize(weight, dim=1) if self.normalise else weight

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes (B, D, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    def forward(self, vectors: Tensor) -> Quantised:
        """
        Args:
            vectors: (B, D, h, w).
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            if self.normalise:
                vectors = F.normalize(vectors, dim=1)
            flat = vectors.movedim(1, -1).reshape(-1, self.dim)  # (N, D)
            b, _, h, w = vectors.shape
            if self.training:
                self.batches += 1
                if not self._started:
                    self._start(flat.detach())
            codebook = self.codebook
            indices = nearest(flat.detach(), codebook.detach())  # (N,)
            if self.training and not self._started:
                # The codebook stays in the graph, as distributed training expects of every parameter.
                zero = codebook.sum() * 0.0
                return Quantised(vectors, indices.view(b, h, w), zero, zero)
            chosen = F.embedding(indices, codebook)  # (N, D)
            codebook_loss = F.mse_loss(chosen, flat.detach())
            commitment_loss = F.mse_loss(flat, chosen.detach())
            if self.training:
                self._follow(flat.detach(), indices)
            if self.learning == "ema":
                codebook_loss = torch.zeros_like(commitment_loss)
            through = flat + (chosen - flat).detach()  # straight-through estimator
            codes = through.view(b, h, w, self.dim).movedim(-1, 1)
            return Quantised(codes, indices.view(b, h, w), codebook_loss, commitment_loss)

    @property
    def starts_next(self) -> bool:
        """Whether the next training batch is the first quantised one, and its codes start from vectors."""
        return not self._started and self.kmeans_iterations > 0 and int(self.batches) == self.start_after

    @torch.no_grad()
    def start(self, vectors: Tensor) -> None:
        """Place the codes by k-means of vectors (B, D, h, w), instead of the next training batch's own."""
        flat = vectors.float().movedim(1, -1).reshape(-1, self.dim)
        self._cluster(F.normalize(flat, dim=1) if self.normalise else flat)
        self._placed = True

    def _cluster(self, flat: Tensor) -> None:
        means = kmeans(flat, self.codes, self.kmeans_iterations, self.normalise, self.kmeans_seeding, self._random(0))
        self._place(torch.arange(self.codes, device=flat.device), _from_first(means))

    @torch.no_grad()
    def _start(self, flat: Tensor) -> None:
        """Once `start_after` training batches have passed, place the codes."""
        self._started = int(self.batches) > self.start_after
        # A resumed run has started, but its codes are in place.
        first = int(self.batches) == self.start_after + 1
        if self._started and first and self.kmeans_iterations and not self._placed:
            self._cluster(flat)

    def _place(self, rows: Tensor, vectors: Tensor) -> None:
        codes = whole(self.embedding.weight.data)
        codes[rows] = vectors.to(codes)
        if self.learning == "ema":
            self.ema_counts[rows] = 1.0
            self.ema_sums[rows] = vectors.to(self.ema_sums)

    @torch.no_grad()
    def _follow(self, flat: Tensor, indices: Tensor) -> None:
        """Take note of which codes a training batch used; move an EMA codebook."""
        counts = _everywhere(torch.bincount(indices, minlength=self.codes))
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + 1))
        if self.restart_below:
            self.use.lerp_(counts / counts.sum(), 1.0 - self.ema_decay)
        if self.learning == "ema":
            sums = _everywhere(torch.zeros_like(self.ema_sums).index_add_(0, indices, flat))
            self.ema_counts.lerp_(counts.to(self.ema_counts), 1.0 - self.ema_decay)
            self.ema_sums.lerp_(sums, 1.0 - self.ema_decay)
            whole(self.embedding.weight).copy_(self.ema_sums / self.ema_counts.clamp(min=1e-5)[:, None])
        if self.restart_after or self.restart_below:
            self._newest = flat, indices

    @torch.no_grad()
    def restart_idle(self) -> Restart | None:
        """Move the codes that `restart_after` or `restart_below` call unused to vectors of the newest training batch.

        To be called after the optimizer's step; None if nothing moved. The optimizer's state of a moved code is the
        caller's to change: `donors` says which code had served the new place until now.
        """
        if self._newest is None:
            return None
        (flat, indices), self._newest = self._newest, None
        unused = torch.zeros_like(self.idle, dtype=torch.bool)
        if self.restart_after:
            unused |= self.idle >= self.restart_after
        if self.restart_below:
            unused |= self.use < self.restart_below / self.codes
        if self.restart_until:
            unused &= self.batches <= self.restart_until
        stale = torch.nonzero(unused)[:, 0]
        if len(stale) == 0:
            return None
        drawn = torch.randint(len(flat), (len(stale),), generator=self._random(1)).to(flat.device)
        donors = _from_first(indices[drawn])
        self._place(stale, _from_first(flat[drawn]))
        self.idle[stale] = 0
        if self.restart_below:
            self.use[stale] = 1.0 / self.codes
        return Restart(stale, donors)


def move_state(optimizer: torch.optim.Optimizer, parameter: Tensor, restart: Restart) -> None:
    """Give restarted codes the optimizer state of the codes whose place they share.

    Zeros would not treat optimizers alike: a second moment of zero late in training means a step many times too long,
    which Adam takes in that row alone while FAdam's clip takes it out of the whole tensor. The donor's momentum and
    curvature are of the right size, and copying rows needs no knowledge of what an optimizer calls its state.
    """
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            rows = whole(value)
            rows[restart.codes] = rows[restart.donors]
