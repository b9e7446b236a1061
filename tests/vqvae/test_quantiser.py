"""The quantiser against values worked out by hand and against a slow moving average."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import fadam
from experiments.core.errors import ConfigError
from experiments.vqvae.metrics import CodebookUse, perplexity
from experiments.vqvae.quantiser import Restart, Seeding, VectorQuantiser, kmeans, move_state, nearest, spread


def quantiser(codebook: list[list[float]], **options: object) -> VectorQuantiser:
    made = VectorQuantiser(len(codebook), len(codebook[0]), kmeans_iterations=0, **options)  # type: ignore[arg-type]
    made.embedding.weight.data = torch.tensor(codebook)
    if made.learning == "ema":
        made.ema_sums.copy_(made.embedding.weight)
    return made


def grid(vectors: list[list[float]]) -> torch.Tensor:
    """(1, D, 1, N) with gradient."""
    return torch.tensor(vectors).T[None, :, None].clone().requires_grad_()


def test_codes_and_both_losses_by_hand() -> None:
    q = quantiser([[0.0, 0.0], [4.0, 0.0]])
    z = grid([[1.0, 1.0], [3.0, 0.0], [5.0, -2.0]])
    out = q(z)
    assert out.indices.tolist() == [[[0, 1, 1]]]
    assert torch.equal(out.codes[0, :, 0].T, torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 0.0]]))
    # Squared distances 2, 1 and 5 over six numbers.
    assert out.codebook_loss.item() == pytest.approx(8 / 6)
    assert out.commitment_loss.item() == pytest.approx(8 / 6)


def test_each_loss_moves_its_own_side() -> None:
    q = quantiser([[0.0, 0.0], [4.0, 0.0]])
    z = grid([[1.0, 1.0], [3.0, 0.0], [5.0, -2.0]])
    out = q(z)
    out.codebook_loss.backward(retain_graph=True)
    assert z.grad is None or not z.grad.any()
    # d/de of the mean over six numbers of |e - z|^2: 2 (e - z) / 6, summed over the vectors of a code.
    expected = torch.tensor([[-2.0, -2.0], [0.0, 4.0]]) / 6
    assert torch.allclose(q.embedding.weight.grad, expected)
    q.embedding.weight.grad = None
    out.commitment_loss.backward()
    assert q.embedding.weight.grad is None
    expected = torch.tensor([[2.0, 2.0], [-2.0, 0.0], [2.0, -4.0]]) / 6
    assert torch.allclose(z.grad[0, :, 0].T, expected)


def test_gradient_goes_straight_through_the_codes() -> None:
    q = quantiser([[0.0, 0.0], [4.0, 0.0]])
    z = grid([[1.0, 1.0], [3.0, 0.0]])
    weights = torch.randn(1, 2, 1, 2)
    (q(z).codes * weights).sum().backward()
    assert torch.equal(z.grad, weights)
    assert q.embedding.weight.grad is None


def test_normalised_codes_lie_on_the_sphere_and_directions_decide() -> None:
    q = quantiser([[10.0, 0.0], [0.0, 0.1]], normalise=True)
    out = q(grid([[0.2, 0.1], [1.0, 30.0]]))
    assert out.indices.tolist() == [[[0, 1]]]
    assert torch.allclose(out.codes[0, :, 0].T, torch.eye(2), atol=1e-6)
    # |u - e|^2 = 2 - 2 cos for unit vectors.
    cos = [0.2 / math.hypot(0.2, 0.1), 30 / math.hypot(1, 30)]
    assert out.commitment_loss.item() == pytest.approx(sum(2 - 2 * c for c in cos) / 4, rel=1e-4)


def test_nearest_is_the_least_distance() -> None:
    torch.manual_seed(0)
    vectors, codes = torch.randn(50, 5), torch.randn(7, 5)
    assert torch.equal(nearest(vectors, codes), torch.cdist(vectors, codes).argmin(dim=1))


def test_lookup_gives_the_codes_of_the_indices() -> None:
    q = quantiser([[0.0, 1.0], [4.0, 0.0]])
    out = q(grid([[1.0, 1.0], [3.0, 0.0]]))
    assert torch.equal(q.lookup(out.indices), out.codes)


def test_ema_codebook_follows_a_slow_reference() -> None:
    torch.manual_seed(0)
    decay, codes = 0.9, torch.randn(4, 3)
    q = quantiser(codes.tolist(), learning="ema", ema_decay=decay).train()
    counts, sums = [1.0] * 4, [row.clone() for row in codes]
    for _ in range(5):
        z = torch.randn(2, 3, 2, 2)
        table = q.embedding.weight.clone()
        out = q(z)
        flat = z.movedim(1, -1).reshape(-1, 3)
        for k in range(4):
            own = [v for v in flat if (table - v).norm(dim=1).argmin() == k]
            counts[k] = decay * counts[k] + (1 - decay) * len(own)
            sums[k] = decay * sums[k] + (1 - decay) * sum(own, torch.zeros(3))
            assert torch.allclose(q.embedding.weight[k], sums[k] / counts[k], atol=1e-5)
        assert out.codebook_loss.item() == 0.0
    assert not q.embedding.weight.requires_grad


def test_evaluation_changes_nothing() -> None:
    for learning in ("gradient", "ema"):
        q = VectorQuantiser(4, 3, learning=learning, restart_after=1).eval()  # type: ignore[arg-type]
        before = {k: v.clone() for k, v in q.state_dict().items()}
        q(torch.randn(2, 3, 2, 2))
        assert q.restart_idle() is None
        assert all(torch.equal(v, before[k]) for k, v in q.state_dict().items())


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_first_training_batch_places_the_codes(learning: str) -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[9.0, 0.0], [0.0, 9.0], [-9.0, -9.0]])
    z = (centres.repeat(20, 1) + 0.1 * torch.randn(60, 2)).T.reshape(1, 2, 6, 10)
    options = {"learning": learning, "kmeans_iterations": 20, "kmeans_seeding": "spread"}
    q = VectorQuantiser(3, 2, **options)  # type: ignore[arg-type]
    assert q(z).commitment_loss < 0.1
    placed = q.embedding.weight.detach().clone()
    q.train()(z + 5.0)
    assert learning == "ema" or torch.equal(q.embedding.weight, placed)


def test_vectors_pass_unquantised_until_the_start() -> None:
    torch.manual_seed(0)
    q = VectorQuantiser(4, 2, start_after=2, restart_after=1)
    codes = q.embedding.weight.detach().clone()
    for _ in range(2):
        z = torch.randn(1, 2, 3, 3, requires_grad=True)
        out = q(z)
        assert torch.equal(out.codes, z)
        assert out.codebook_loss == out.commitment_loss == 0.0
        (out.codes.sum() + out.codebook_loss + out.commitment_loss).backward()
        assert torch.equal(z.grad, torch.ones_like(z))
        assert not q.embedding.weight.grad.any()
        assert q.restart_idle() is None
        assert torch.equal(q.embedding.weight, codes)
    # Resuming between two batches changes nothing.
    resumed = VectorQuantiser(4, 2, start_after=2, restart_after=1)
    resumed.load_state_dict(q.state_dict())
    z = torch.randn(1, 2, 3, 3)
    for quantiser_ in (q, resumed):
        torch.manual_seed(1)
        out = quantiser_(z)
        assert not torch.equal(out.codes, z)
        assert not torch.equal(quantiser_.embedding.weight, codes)
    assert torch.equal(q.embedding.weight, resumed.embedding.weight)
    started = VectorQuantiser(4, 2, start_after=2)
    started.load_state_dict(resumed.state_dict())
    started(z)
    assert torch.equal(started.embedding.weight, resumed.embedding.weight)
    # Evaluation quantises at any time.
    assert not torch.equal(VectorQuantiser(4, 2, start_after=2).eval()(z).codes, z)


def error_of(means: torch.Tensor, vectors: torch.Tensor) -> float:
    return (vectors - means[nearest(vectors, means)]).square().sum(dim=1).mean().item()


def test_spread_seeds_find_every_cluster() -> None:
    torch.manual_seed(0)
    vectors = (20.0 * torch.randn(12, 1, 4) + 0.1 * torch.randn(12, 30, 4)).reshape(-1, 4)
    for seed in range(10):
        rows = spread(vectors, 12, torch.Generator().manual_seed(seed))
        assert sorted((rows // 30).tolist()) == list(range(12))
    errors = [error_of(kmeans(vectors, 12, 10, seeding="spread", random=seeded(i)), vectors) for i in range(10)]
    assert max(errors) < 0.1
    errors = [error_of(kmeans(vectors, 12, 10, seeding="random", random=seeded(i)), vectors) for i in range(10)]
    assert max(errors) > 10.0


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seeding", ["random", "spread"])
def test_kmeans_is_repeatable_and_leaves_the_global_generator_alone(seeding: Seeding) -> None:
    vectors = torch.randn(50, 3)
    before = torch.get_rng_state()
    one, two = (kmeans(vectors, 8, 5, seeding=seeding, random=seeded(4)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, kmeans(vectors, 8, 5, seeding=seeding, random=seeded(5)))
    assert torch.equal(before, torch.get_rng_state())


def test_codes_start_from_the_vectors_given() -> None:
    torch.manual_seed(0)
    given = torch.randn(6, 2, 5, 5)
    q = VectorQuantiser(4, 2, start_after=1)
    assert not q.starts_next
    q(torch.randn(1, 2, 3, 3))
    assert q.starts_next
    q.start(given)
    placed = q.embedding.weight.detach().clone()
    flat = given.movedim(1, -1).reshape(-1, 2)
    assert error_of(placed, flat) < 0.5 * flat.square().sum(dim=1).mean()
    out = q(9.0 + torch.randn(1, 2, 3, 3))
    assert torch.equal(q.embedding.weight, placed)
    assert out.commitment_loss > 10.0
    assert not q.starts_next
    # A resumed run is past its start.
    resumed = VectorQuantiser(4, 2, start_after=1)
    resumed.load_state_dict(q.state_dict())
    assert not resumed.starts_next
    assert not VectorQuantiser(4, 2, kmeans_iterations=0).starts_next


def test_codes_of_little_use_move() -> None:
    torch.manual_seed(0)
    q = quantiser([[0.0, 0.0], [1.0, 1.0], [9.0, 9.0]], restart_below=0.5, ema_decay=0.5).train()
    z = torch.rand(1, 2, 10, 10)
    z[0, :, 0, 0] = 9.0  # one vector of a hundred: never idle
    for batch in range(8):
        q(z)
        restart = q.restart_idle()
        # 1/3 halves with each batch: below a half of 1/3 after the second.
        assert (restart is None) == (batch < 1)
        if restart is not None:
            break
    assert restart.codes.tolist() == [2]
    assert q.use[2].item() == pytest.approx(1 / 3)
    assert q.idle.tolist() == [0, 0, 0]


def test_no_code_moves_after_the_last_restart() -> None:
    torch.manual_seed(0)
    q = quantiser([[0.0, 0.0], [99.0, 99.0]], restart_after=1, restart_until=2).train()
    for batch in range(4):
        q.embedding.weight.data[1] = 99.0
        q(torch.rand(1, 2, 3, 3))
        assert (q.restart_idle() is None) == (batch >= 2)


def test_restarts_do_not_depend_on_the_global_generator() -> None:
    moved = []
    for noise in range(2):
        torch.manual_seed(3)
        q = VectorQuantiser(16, 4, restart_after=1).train()
        z = torch.randn(1, 4, 3, 3)
        torch.rand(1 + noise)
        q(z)
        q.restart_idle()
        moved.append(q.embedding.weight.detach().clone())
    assert torch.equal(*moved)


def test_kmeans_with_fewer_vectors_than_codes_gives_different_codes() -> None:
    torch.manual_seed(0)
    means = kmeans(torch.randn(5, 3), k=12, iterations=3)
    assert means.shape == (12, 3)
    assert len(torch.unique(means, dim=0)) == 12


def test_idle_codes_move_to_vectors_of_the_batch() -> None:
    torch.manual_seed(0)
    q = quantiser([[0.0, 0.0], [1.0, 1.0], [99.0, 99.0]], restart_after=3).train()
    for batch in range(3):
        assert q.idle.tolist() == [0, 0, batch]
        z = torch.rand(1, 2, 4, 4)
        q(z)
        restart = q.restart_idle()
        assert (restart is None) == (batch < 2)
    assert restart is not None
    assert restart.codes.tolist() == [2]
    vectors = z.movedim(1, -1).reshape(-1, 2)
    place = torch.nonzero((vectors == q.embedding.weight[2]).all(dim=1))[:, 0]
    assert len(place) == 1
    # The donor is the code that this vector had been assigned to.
    assert restart.donors[0] == nearest(vectors[place], torch.tensor([[0.0, 0.0], [1.0, 1.0]]))[0]
    assert q.idle.tolist() == [0, 0, 0]


def test_restart_is_repeatable() -> None:
    moved = []
    for _ in range(2):
        torch.manual_seed(3)
        q = VectorQuantiser(16, 4, restart_after=1).train()
        q(torch.randn(1, 4, 3, 3))
        q.restart_idle()
        moved.append(q.embedding.weight.detach().clone())
    assert torch.equal(*moved)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.Adam, fadam.FAdam])
def test_restarted_codes_inherit_their_donors_state(make: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    codes = torch.nn.Parameter(torch.randn(5, 3))
    other = torch.nn.Parameter(torch.randn(2, 3))
    optimizer = make([codes, other], lr=1e-2)  # type: ignore[call-arg]
    ((codes * torch.randn(5, 3)).sum() + other.square().sum()).backward()
    optimizer.step()
    rows = {k: v.clone() for k, v in optimizer.state[codes].items() if v.shape == codes.shape}
    rest = {k: v.clone() for k, v in optimizer.state[other].items()}
    assert len(rows) == 2
    move_state(optimizer, codes, Restart(torch.tensor([4, 1]), torch.tensor([0, 2])))
    for key, before in rows.items():
        assert torch.equal(optimizer.state[codes][key], before[[0, 2, 2, 3, 0]])
    assert all(torch.equal(optimizer.state[other][k], v) for k, v in rest.items())
    assert optimizer.state[codes]["step"] == 1


def test_a_network_learns_through_the_quantiser() -> None:
    torch.manual_seed(0)
    data = torch.randn(1, 4, 8, 8)
    encoder, decoder = torch.nn.Conv2d(4, 4, 1), torch.nn.Conv2d(4, 4, 1)
    q = VectorQuantiser(32, 4, restart_after=10)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters(), *q.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        out = q(encoder(data))
        loss = F.mse_loss(decoder(out.codes), data)
        optimizer.zero_grad()
        (loss + out.codebook_loss + 0.25 * out.commitment_loss).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("codes", 1, "quantiser.codes must be at least 2, got 1"),
        ("dim", 0, "quantiser.dim must be at least 1, got 0"),
        ("learning", "both", "quantiser.learning must be gradient or ema, got 'both'"),
        ("start_after", -1, "quantiser.start_after must be at least 0, got -1"),
        ("kmeans_iterations", -1, "quantiser.kmeans_iterations must be at least 0, got -1"),
        ("restart_after", -5, "quantiser.restart_after must be at least 0, got -5"),
        ("kmeans_seeding", "far", "quantiser.kmeans_seeding must be random or spread, got 'far'"),
        ("restart_below", 1.0, "quantiser.restart_below must be at least 0 and below 1, got 1.0"),
        ("restart_until", -1, "quantiser.restart_until must be at least 0, got -1"),
        ("ema_decay", 1.0, "quantiser.ema_decay must be at least 0 and below 1, got 1.0"),
    ],
)
def test_options_out_of_range_are_named(option: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{words}$"):
        VectorQuantiser(**({"codes": 4, "dim": 2} | {option: value}))  # type: ignore[arg-type]


def test_codebook_use() -> None:
    use = CodebookUse(4)
    use.update(torch.tensor([[0, 1], [0, 1]]))
    use.update(torch.tensor([[0, 1, 2, 2]]))
    assert use.compute().tolist() == [3, 3, 2, 0]
    p = [3 / 8, 3 / 8, 2 / 8]
    expected = math.exp(-sum(x * math.log(x) for x in p))
    assert perplexity(use.compute()).item() == pytest.approx(expected, rel=1e-6)
    assert perplexity(torch.tensor([0, 7, 0])).item() == 1.0
