"""Diagonal Fisher information: from the optimizer, by a pass over data, and in files."""

from __future__ import annotations

import builtins
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F

from fadam import FAdam
from fadam.fisher import (
    Fim,
    FimInfo,
    diagonal_fim,
    empirical_fim,
    every_class,
    load_fim,
    save_fim,
    true_fim,
    weights_hash,
)

OPTIMIZERS = {"FAdam": FAdam, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
Batch = tuple[Tensor, Tensor]


def classifier(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def data(n: int = 10, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator).double(), torch.randint(3, (n,), generator=generator)


def stepped(name: str, model: nn.Module, steps: int = 3, **options: Any) -> tuple[torch.optim.Optimizer, list[Any]]:
    """An optimizer after some steps, and the squared gradients of each."""
    optimizer = OPTIMIZERS[name](model.named_parameters(), lr=1e-2, **options)
    squares = []
    for step in range(steps):
        optimizer.zero_grad()
        cross_entropy(model, data(seed=step)).backward()
        squares.append({n: p.grad.square() for n, p in model.named_parameters()})
        optimizer.step()
    return optimizer, squares


def average(squares: list[dict[str, Tensor]], beta2: float) -> dict[str, Tensor]:
    """The moving average with its bias corrected, as one weighted sum."""
    weights = [beta2 ** (len(squares) - 1 - s) for s in range(len(squares))]
    return {
        n: sum(w * g[n] for w, g in zip(weights, squares, strict=True)) / sum(weights) for n in squares[0]
    }  # fmt: skip


# ---- from the optimizer ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, 1.0),
        ({"batch_size": 10}, 10.0),
        ({"batch_size": 10, "reduction": "sum"}, 0.1),
        ({"batch_size": 10, "scale": 4.0}, 10 / 16),
        ({"scale": 0.5}, 4.0),
    ],
)
def test_it_is_the_average_of_squared_gradients_times_the_factor(name, options, factor):
    model = classifier()
    optimizer, squares = stepped(name, model, betas=(0.9, 0.8))
    fim = diagonal_fim(optimizer, **options)
    for key, expected in average(squares, 0.8).items():
        assert torch.allclose(fim[key], factor * expected, rtol=1e-12)
    assert fim.info.source == name
    assert (fim.info.factor, fim.info.beta2, fim.info.steps) == (pytest.approx(factor), 0.8, 3)


def test_the_factor_brings_the_mean_of_squares_back():
    # All batches of two samples whose gradients cancel on the average: g = 0, and E[g_B^2] = F / B exactly.
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = FAdam([("weight", weight)], lr=0.0, betas=(0.9, 0.999999999), weight_decay=0.0)
    gradients = torch.tensor([[1.0, 3.0], [-1.0, 1.0], [2.0, -4.0], [-2.0, 0.0]], dtype=torch.float64)
    for pair in itertools.product(range(4), repeat=2):
        weight.grad = gradients[list(pair)].mean(0)
        optimizer.step()
    fim = diagonal_fim(optimizer, batch_size=2)
    assert torch.allclose(fim["weight"], gradients.square().mean(0), rtol=1e-7)


def test_a_mean_gradient_makes_the_factor_too_large_by_what_the_docstring_says():
    weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = FAdam([("weight", weight)], lr=0.0, betas=(0.9, 0.999999999), weight_decay=0.0)
    gradients = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    for triple in itertools.product(range(3), repeat=3):
        weight.grad = gradients[list(triple)].mean()
        optimizer.step()
    expected = gradients.square().mean() + (3 - 1) * gradients.mean() ** 2
    assert diagonal_fim(optimizer, batch_size=3)["weight"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_names_come_from_the_model_or_the_named_parameters():
    model = classifier()
    optimizer = FAdam(model.parameters(), lr=1e-2)
    cross_entropy(model, data()).backward()
    optimizer.step()
    assert list(diagonal_fim(optimizer, model=model)) == [n for n, _ in model.named_parameters()]
    with pytest.raises(ValueError, match="parameters without names; give model="):
        diagonal_fim(optimizer)
    with pytest.raises(ValueError, match="4 of the 4 parameters stepped are not the model's"):
        diagonal_fim(optimizer, model=classifier())


def test_what_was_never_stepped_is_left_out():
    model = classifier()
    optimizer = FAdam(model.named_parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="has taken no step"):
        diagonal_fim(optimizer)
    model[0].requires_grad_(False)
    cross_entropy(model, data()).backward()
    optimizer.step()
    assert list(diagonal_fim(optimizer)) == ["2.weight", "2.bias"]


def test_the_values_are_copies_in_float32_at_least():
    model = classifier().to(torch.bfloat16)
    optimizer = FAdam(model.named_parameters(), lr=1e-2)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    fim = diagonal_fim(optimizer)
    fim["0.weight"].zero_()
    assert fim["0.bias"].dtype == torch.float32
    assert optimizer.state[model[0].weight]["fim"].min() == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_complex_parameter_has_one_for_each_part(name):
    weight = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = OPTIMIZERS[name]([("weight", weight)], lr=1e-2)
    weight.grad = torch.tensor([1 + 2j, 3 - 4j])
    optimizer.step()
    expected = torch.tensor([[1.0, 4.0], [9.0, 16.0]])
    assert torch.allclose(diagonal_fim(optimizer)["weight"], expected)


def test_ranges_where_groups_differ():
    model = classifier()
    groups = [{"params": model[0].parameters(), "betas": (0.9, 0.5)}, {"params": model[2].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    cross_entropy(model, data()).backward()
    optimizer.step()
    info = diagonal_fim(optimizer, model=model).info
    assert info.beta2 == (0.5, 0.999)
    assert info.steps == 1
    assert info.window == pytest.approx(1.0)


def test_the_window_is_the_number_of_equal_weights_with_the_same_noise():
    weights = torch.tensor([0.9 ** (19 - s) for s in range(20)], dtype=torch.float64)
    expected = weights.sum() ** 2 / weights.square().sum()
    assert FimInfo("FAdam", beta2=0.9, steps=20).window == pytest.approx(expected.item())
    assert FimInfo("true").window is None


def test_an_l2_penalty_in_adam_is_told():
    model = classifier()
    optimizer, _ = stepped("Adam", model, weight_decay=0.1)
    with pytest.warns(UserWarning, match=r"Adam added weight_decay=0\.1 times the weights"):
        diagonal_fim(optimizer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch_size": 0}, "batch_size=0 is not allowed; batch_size must be a whole number of at least 1, or None"),
        ({"batch_size": 2.0}, "batch_size=2.0 is not allowed"),
        ({"batch_size": True}, "batch_size=True is not allowed"),
        ({"scale": 0.0}, "scale=0.0 is not allowed; scale must be a finite number > 0"),
        ({"scale": float("inf")}, "scale=inf is not allowed"),
        ({"reduction": "none"}, "reduction='none' is not allowed; reduction must be one of 'mean', 'sum'"),
    ],
)
def test_options_are_checked(options, sentence):
    optimizer, _ = stepped("FAdam", classifier(), 1)
    with pytest.raises(ValueError, match=sentence):
        diagonal_fim(optimizer, **options)


def test_another_optimizer_is_refused():
    with pytest.raises(TypeError, match="optimizer must be a FAdam, Adam or AdamW, got SGD"):
        diagonal_fim(torch.optim.SGD(classifier().parameters(), lr=1.0))


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_states_are_gathered_or_kept(one_process, tmp_path):
    whole = torch.arange(6.0).view(3, 2)
    weight = nn.Parameter(distribute_tensor(whole, one_process, [Shard(0)]))
    optimizer = FAdam([("weight", weight)], lr=1e-2)
    weight.grad = distribute_tensor(whole, one_process, [Shard(0)])
    optimizer.step()
    gathered, kept = diagonal_fim(optimizer)["weight"], diagonal_fim(optimizer, gather=False)
    assert not isinstance(gathered, DTensor)
    assert torch.allclose(gathered, whole.square())
    assert isinstance(kept["weight"], DTensor)
    assert kept["weight"].placements == (Shard(0),)
    with pytest.raises(ValueError, match="the values are sharded"):
        save_fim(tmp_path / "fim.safetensors", kept)
    holder = nn.Module()
    holder.weight = weight
    with pytest.raises(ValueError, match="needs whole parameters; these are sharded"):
        empirical_fim(holder, cross_entropy, [])
    assert diagonal_fim(optimizer, model=holder).info.weights == weights_hash(holder)


# ---- by a pass over data ---------------------------------------------------------------------------------------------
def by_hand(model: nn.Module, samples: list[tuple[Batch, float]]) -> dict[str, Tensor]:
    """Weighted squares of gradients, one backward pass each."""
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for batch, weight in samples:
        gradients = torch.autograd.grad(cross_entropy(model, batch), list(model.parameters()))
        for n, g in zip(total, gradients, strict=True):
            total[n] += weight * g.square()
    return total


@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_empirical_is_the_mean_of_squared_gradients_of_single_samples(method, chunk_size):
    model, (x, y) = classifier(), data()
    fim = empirical_fim(model, cross_entropy, [(x[:7], y[:7]), (x[7:], y[7:])], method=method, chunk_size=chunk_size)
    expected = by_hand(model, [((x[i : i + 1], y[i : i + 1]), 1 / 10) for i in range(10)])
    for name, value in expected.items():
        assert torch.allclose(fim[name], value, rtol=1e-10)
    assert (fim.info.source, fim.info.samples, fim.info.weights) == ("empirical", 10, weights_hash(model))


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_true_is_the_mean_over_the_model_s_labels(method):
    model, (x, y) = classifier(), data()
    fim = true_fim(model, cross_entropy, [(x, y)], outcomes=every_class, method=method)
    p = model(x).softmax(-1).detach()
    labels = itertools.product(range(10), range(3))
    samples = [((x[i : i + 1], torch.tensor([k])), p[i, k].item() / 10) for i, k in labels]
    for name, value in by_hand(model, samples).items():
        assert torch.allclose(fim[name], value, rtol=1e-10)
    assert torch.allclose(fim["2.bias"], (p * (1 - p)).mean(0), rtol=1e-10)
    assert (fim.info.source, fim.info.samples) == ("true", 10)


def draw_class(model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
    p = model(batch[0]).softmax(-1)
    return batch[0], torch.multinomial(p, 1, generator=generator).squeeze(-1)


def test_drawn_labels_come_near_the_exact_ones_and_repeat():
    model, batch = classifier(), data(200)
    exact = true_fim(model, cross_entropy, [batch], outcomes=every_class)
    drawn = true_fim(model, cross_entropy, [batch], sample=draw_class, draws=20, chunk_size=200)
    again = true_fim(model, cross_entropy, [batch], sample=draw_class, draws=20, chunk_size=200)
    for name, value in exact.items():
        assert torch.allclose(drawn[name], value, rtol=0.2)
        assert torch.equal(drawn[name], again[name])


class Tied(nn.Module):
    """A tied matrix, a frozen parameter, one that is not used, and a loss that uses a part of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
        self.head.weight = self.embedding.weight
        self.frozen, self.unused = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.embedding(x))


def tied_loss(model: Tied, batch: dict[str, Any]) -> Tensor:
    assert batch["note"] == "kept"
    return F.cross_entropy(model.head(model(batch["x"])), batch["y"])


def test_tied_frozen_and_unused_parameters_agree_in_both_ways():
    torch.manual_seed(0)
    model = Tied()
    batch = {"x": torch.tensor([0, 1, 3]), "y": torch.tensor([1, 1, 2]), "note": "kept"}
    one, other = (empirical_fim(model, tied_loss, [batch], method=m) for m in ("vmap", "loop"))
    assert list(one) == list(other) == ["embedding.weight", "unused.weight"]
    assert one["embedding.weight"].count_nonzero() == 8
    assert torch.allclose(one["embedding.weight"], other["embedding.weight"])
    assert not one["unused.weight"].any()
    assert not other["unused.weight"].any()


def test_batch_norm_has_no_gradient_of_a_sample_while_it_trains():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    with pytest.raises(ValueError, match=r"batch norm by the batch \(1\).* call model.eval\(\) first"):
        empirical_fim(model, cross_entropy, [data()])
    without = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False)).double().eval()
    with pytest.raises(ValueError, match=r"batch norm by the batch \(1\).* keep running statistics"):
        empirical_fim(without, cross_entropy, [data()])
    model.eval()
    one, other = (empirical_fim(model, cross_entropy, [data()], method=m) for m in ("vmap", "loop"))
    assert all(torch.allclose(one[n], other[n]) for n in one)


def test_what_vmap_cannot_take_is_told_and_the_loop_takes_it():
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model, batch) * (1.0 if batch[1].item() else 2.0)

    model = classifier()
    with pytest.raises(RuntimeError, match=r'vmap cannot take this model: .*; use method="loop"'):
        empirical_fim(model, loss, [data()])
    assert empirical_fim(model, loss, [data()], method="loop").info.samples == 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "jvp"}, "method='jvp' is not allowed; method must be one of 'vmap', 'loop'"),
        ({"chunk_size": 0}, "chunk_size=0 is not allowed; chunk_size must be a whole number of at least 1"),
    ],
)
def test_options_of_a_pass_are_checked(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        empirical_fim(classifier(), cross_entropy, [data()], **options)


def test_options_of_the_true_one_are_checked():
    for both in ({}, {"outcomes": every_class, "sample": draw_class}):
        with pytest.raises(ValueError, match="exactly one of outcomes and sample must be given"):
            true_fim(classifier(), cross_entropy, [data()], **both)
    with pytest.raises(ValueError, match="draws=0 is not allowed"):
        true_fim(classifier(), cross_entropy, [data()], sample=draw_class, draws=0)


def test_data_are_checked():
    model, (x, y) = classifier(), data()
    with pytest.raises(ValueError, match="there are no data"):
        empirical_fim(model, cross_entropy, [])
    with pytest.raises(ValueError, match=r"samples along axis 0, got shapes \[\(10, 3\), \(9,\)\]"):
        empirical_fim(model, cross_entropy, [(x, y[:9])])
    with pytest.raises(ValueError, match=r"samples along axis 0, got shapes \[\(10, 3\), \(\)\]"):
        empirical_fim(model, cross_entropy, [(x, y[0])])
    with pytest.raises(ValueError, match=r"loss must give one element .* got shape \(1, 3\)"):
        empirical_fim(model, lambda m, b: m(b[0]), [(x, y)])


# ---- files -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, nn.Module, Fim]:
    model = classifier()
    optimizer, _ = stepped("AdamW", model)
    fim = diagonal_fim(optimizer, model=model, batch_size=10)
    save_fim(tmp_path / "fim.safetensors", fim)
    return tmp_path / "fim.safetensors", model, fim


def test_a_file_gives_back_values_and_where_they_come_from(saved):
    path, model, fim = saved
    loaded = load_fim(path, model, same_weights=True)
    assert loaded.info == fim.info
    assert loaded.info.weights == weights_hash(model)
    assert list(loaded) == sorted(fim)
    assert all(torch.equal(loaded[name], fim[name]) for name in fim)
    assert [p.name for p in path.parent.iterdir()] == ["fim.safetensors"]


def test_ranges_survive_a_file(tmp_path):
    model = classifier()
    fim = Fim({n: p.detach() for n, p in model.named_parameters()}, FimInfo("FAdam", beta2=(0.9, 0.99), steps=(1, 2)))
    save_fim(tmp_path / "fim.safetensors", fim)
    assert load_fim(tmp_path / "fim.safetensors", model).info == fim.info


def test_a_model_that_does_not_fit_is_refused(saved):
    path, model, _ = saved
    with pytest.raises(
        ValueError, match=r"does not fit the model: 0.bias \(\(4,\), not \(5,\)\), 0.weight \(\(4, 3\), not"
    ):
        load_fim(path, nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)))
    with pytest.raises(ValueError, match=r"2.bias \(not in the model\)"):
        load_fim(path, nn.Sequential(nn.Linear(3, 4)), partial=True)
    longer = nn.Sequential(*model, nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"3.weight \(missing\), 3.bias \(missing\)"):
        load_fim(path, longer)
    assert len(load_fim(path, longer, partial=True)) == 4
    many = nn.Sequential(*model, *(nn.Linear(1, 1) for _ in range(4)))
    with pytest.raises(ValueError, match="and 3 more"):
        load_fim(path, many)


def test_other_weights_are_refused_where_asked(saved, tmp_path):
    path, model, fim = saved
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-9
    load_fim(path, model)
    with pytest.raises(ValueError, match="is not of these weights: they have changed since"):
        load_fim(path, model, same_weights=True)
    save_fim(tmp_path / "other", Fim(fim, FimInfo("FAdam")))
    with pytest.raises(ValueError, match="is not of these weights: the file does not know its model's"):
        load_fim(tmp_path / "other", model, same_weights=True)


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, str(path))
    with pytest.raises(ValueError, match="was not written by save_fim"):
        load_fim(path, classifier())
    path.write_text(json.dumps({"x": 1}))
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_fim(path, classifier())


def test_without_safetensors_a_sentence_says_what_to_install(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    fim = Fim({}, FimInfo("FAdam"))
    with pytest.raises(ImportError, match="save_fim needs the package safetensors: pip install safetensors"):
        save_fim(tmp_path / "fim", fim)
    with pytest.raises(ImportError, match="load_fim needs the package safetensors"):
        load_fim(tmp_path / "fim", classifier())


def test_the_hash_tells_names_shapes_dtypes_and_values_apart():
    model = classifier()
    hashes = {weights_hash(model), weights_hash(classifier(1)), weights_hash(model[0])}
    flat = nn.Linear(3, 4).double()
    with torch.no_grad():
        flat.weight.copy_(model[0].weight)
        flat.bias.copy_(model[0].bias)
    assert weights_hash(flat) == weights_hash(model[0])
    assert len(hashes | {weights_hash(classifier().float())}) == 4
