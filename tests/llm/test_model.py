"""The model: its sizes, its loss, and what its options change."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate

from experiments.core.errors import ConfigError
from experiments.core.optim import parameter_groups
from experiments.llm.model import LanguageModel

SMALL = {"vocab_size": 40, "max_length": 16, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_dim": 24}


def small(**options: object) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(**{**SMALL, **options})  # type: ignore[arg-type]


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def llama_parameters(v: int, d: int, layers: int, kv_share: float, ffn: int, tied: bool) -> int:
    """Weights of a Llama: attention, SwiGLU and two norms a layer, the last norm, and the token matrices."""
    attention = 2 * d * d + 2 * int(d * d * kv_share)
    return layers * (attention + 3 * d * ffn + 2 * d) + d + v * d * (1 if tied else 2)


@pytest.mark.parametrize(
    ("experiment", "total", "non_embedding"),
    [
        ("llm_cpu", llama_parameters(1024, 160, 3, 1, 448, True), 954_080 - 640),
        ("llm_gpu", llama_parameters(50_304, 768, 12, 1, 2048, True), None),
        ("llm_paper", 1_100_048_384, None),
    ],
)
def test_sizes_are_those_that_the_configs_promise(
    compose_config, experiment: str, total: int, non_embedding: int | None
) -> None:
    cfg = compose_config(f"experiment={experiment}")
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == total
    if experiment == "llm_cpu":
        assert model.non_embedding_parameters == non_embedding
        assert 0.8e6 < model.non_embedding_parameters < 1.2e6
    if experiment == "llm_gpu":
        assert 120e6 < total < 128e6
    assert model.max_length >= cfg.data.length
    assert model.vocab_size == cfg.data.tokenizer.vocab_size


def test_formula_of_the_paper_size() -> None:
    assert llama_parameters(32_000, 2048, 22, 4 / 32, 5632, False) == 1_100_048_384


def test_loss_is_the_negative_log_probability_of_each_target() -> None:
    model = small()
    inputs, targets = batch()
    logits = model.llama(input_ids=inputs).logits
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(model(inputs, targets), expected)
    masked = targets.clone()
    masked[1, 3] = -100
    nats = model(inputs, masked)
    assert nats[1, 3] == 0.0
    assert nats.dtype == torch.float32


def test_nothing_is_learned_from_later_tokens() -> None:
    model = small().eval()
    inputs, targets = batch()
    changed = inputs.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 40
    before, after = model(inputs, targets), model(changed, targets)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@pytest.mark.parametrize("option", [{"checkpointing": True}, {"attention": "eager"}])
def test_options_of_speed_change_no_gradient(option: dict[str, object]) -> None:
    gradients = []
    for options in ({}, option):
        model = small(**options).train()
        model(*batch()).mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    assert small(checkpointing=True).llama.is_activation_checkpointing
    assert not small().llama.is_activation_checkpointing


def test_compiling_changes_no_name_and_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = small(compile=True)
    assert compiled._compiled_call_impl is not None
    assert small()._compiled_call_impl is None
    assert compiled.state_dict().keys() == small().state_dict().keys()
    # The graph as it is, without a C++ compiler.
    compiled.compile(backend="eager")
    torch.testing.assert_close(compiled(*batch()), small()(*batch()))


def test_decay_groups_spare_norms_and_on_request_token_matrices() -> None:
    model = small(tie_embeddings=False)
    names = {id(p): name for name, p in model.named_parameters()}

    def spared(decay: str) -> set[str]:
        groups = parameter_groups(model, decay)  # type: ignore[arg-type]
        return {names[id(p)] for group in groups[1:] for p in group["params"]}

    norms = {name for name in names.values() if "norm" in name}
    assert len(norms) == 5
    assert spared("all") == set()
    assert spared("no_norms") == norms
    assert spared("no_embeddings") == norms | {"llama.model.embed_tokens.weight"}


def test_work_per_token() -> None:
    model = small()
    weights = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16) + 16
    assert model.non_embedding_parameters == weights
    assert model.flops_per_token(8) == 6 * (weights + 40 * 16) + 12 * 2 * 16 * 8


def test_text_is_continued_greedily_or_by_the_seed() -> None:
    model = small(init_std=0.5).train()
    prompt = torch.tensor([1, 2, 3])
    state = torch.get_rng_state()
    greedy = model.continue_text(prompt, 6, end=39, temperature=0.0)
    tokens = prompt
    for _ in range(len(greedy)):
        tokens = torch.cat([tokens, model.llama(input_ids=tokens[None]).logits[0, -1].argmax()[None]])
    assert greedy.tolist() == tokens[3:].tolist()
    first, same, other = (model.continue_text(prompt, 12, 39, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert first.tolist() == same.tolist()
    assert first.tolist() != other.tolist()
    assert torch.equal(state, torch.get_rng_state())
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "model.layers must be a whole number of at least 1, got 0"),
        ({"dim": 20}, "model.dim must be a multiple of 2"),
        ({"kv_heads": 3}, "heads of kv_heads"),
        ({"init_std": 0.0}, "model.init_std must be above 0"),
        ({"attention": "fast"}, "model.attention must be sdpa"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small(**options)
