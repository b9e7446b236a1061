r"""Diagonal Fisher information matrices (FIM): from an optimizer's state, and by a pass over data.

:math:`\ell(x, y)` is the negative log-likelihood of one sample, and :math:`g = \nabla_\theta \ell`. Two diagonals, of
the shape of the parameters, are called Fisher information:

- true: :math:`F = E_x E_{y \sim p_\theta(y|x)}[g^2]`, with labels drawn from the model (`true_fim`);
- empirical: :math:`\bar F = E_{(x, y) \sim data}[g^2]`, with the data's labels (`empirical_fim`). It is the true one
  only where the model's distribution fits the data (Kunstner et al., arXiv:1905.12558, section 3).

`diagonal_fim` reads the empirical one off an optimizer, which averages squared gradients anyway ("Fishers for Free?",
Li et al., arXiv:2507.18807). All three give a `Fim`, a dict from parameter name to tensor. `save_fim` and `load_fim`
keep it in a safetensors file.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam, AdamW, Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten

from fadam.bookkeeping import gathered, is_sharded
from fadam.optimizer import FAdam

Loss = Callable[[Any, Any], Tensor]
Reduction = Literal["mean", "sum"]
Method = Literal["vmap", "loop"]
_METADATA = "fadam.fim"
_NAMED = 5  # parameters in an error's sentence


@dataclass(frozen=True)
class FimInfo:
    """Where an estimate comes from.

    Attributes:
        source: "FAdam", "Adam" or "AdamW", whose state it was; "empirical" or "true", a pass over data.
        factor: what the state was multiplied by; 1 for a pass over data.
        batch_size, reduction, scale: the arguments that gave the factor.
        beta2, steps: of the moving average; a range (least, most) where parameters differ, None for a pass over data.
        samples: of a pass over data; None otherwise.
        weights: SHA-256 of the model's parameters, with names, shapes and dtypes; None if no model was given.
        version: of fadam.
    """

    source: str
    factor: float = 1.0
    batch_size: int | None = None
    reduction: str | None = None
    scale: float = 1.0
    beta2: float | tuple[float, float] | None = None
    steps: int | tuple[int, int] | None = None
    samples: int | None = None
    weights: str | None = None
    version: str = ""

    @property
    def window(self) -> float | None:
        r"""Number of equally weighted steps that would leave as much noise as the moving average does,
        :math:`\frac{1 + \beta_2}{1 - \beta_2} \cdot \frac{1 - \beta_2^t}{1 + \beta_2^t}`, for the shortest one."""
        if self.beta2 is None or self.steps is None:
            return None
        beta2 = min(self.beta2) if isinstance(self.beta2, tuple) else self.beta2
        t = min(self.steps) if isinstance(self.steps, tuple) else self.steps
        return (1 + beta2) / (1 - beta2) * (1 - beta2**t) / (1 + beta2**t)


class Fim(dict[str, Tensor]):
    """Diagonal estimates by parameter name; `info` says where they come from."""

    def __init__(self, values: Mapping[str, Tensor], info: FimInfo) -> None:
        super().__init__(values)
        self.info = info


# ---- what the optimizer knows ----------------------------------------------------------------------------------------
@torch.no_grad()
def diagonal_fim(
    optimizer: Optimizer,
    *,
    model: nn.Module | None = None,
    batch_size: int | None = None,
    reduction: Reduction = "mean",
    scale: float = 1.0,
    gather: bool = True,
) -> Fim:
    r"""The diagonal empirical FIM that an optimizer has averaged while it trained.

    FAdam's :math:`f_t` and Adam's :math:`v_t / (1 - \beta_2^t)` are the same moving average of squared *batch*
    gradients. With B independent samples in a batch, :math:`\bar g = E[g]` the gradient of the whole data and a loss
    that is the mean over the samples (expand the square of the mean; cross terms are of independent gradients),

    .. math:: E[g_B^2] = \bar F / B + (1 - 1/B) \, \bar g^2 .

    Where :math:`B \bar g^2 \ll \bar F`, the factor B brings :math:`\bar F` back; that is what `batch_size` does. A
    sum over the samples is B times the mean, and takes 1/B:

    .. math:: \bar F \approx f_t \cdot B / scale^2 \; (mean), \quad \bar F \approx f_t / (B \, scale^2) \; (sum).

    Args:
        optimizer: FAdam, or torch's Adam or AdamW, after at least one step.
        model: gives the names, by `named_parameters`, and the hash of its weights. None takes the names from
            an optimizer that was built with named parameters.
        batch_size: B, the samples whose losses one *step* averages, over all processes and all accumulated gradients.
            What counts as a sample decides whose Fisher information this is: for that of one token's prediction, a
            mean over S sequences of T tokens has B = S T. None leaves the average as it is, the right choice where its
            size does not matter (merging, pruning).
        reduction: "mean" or "sum", of the loss over the samples of a step.
        scale: any other factor of the loss: a weight, an AMP scale that was still in the gradients, or k for k
            accumulated backward passes whose sum was not divided by k.
        gather: gather sharded states (DTensor; every process must call this); False leaves them sharded.

    Returns:
        A new tensor for each parameter that has been stepped, of its shape, in float32 or wider, on the state's
        device. A complex parameter of shape (\*) has one of shape (\*, 2).

    Raises:
        ValueError: an option outside its range; no step taken; no names to be had; a parameter that is not the model's.
        TypeError: another optimizer.

    Caveats:
        - It is an average along the path, not at the end of it: steps count with weight
          :math:`(1 - \beta_2) \beta_2^{t-s}`, so about the last :math:`1 / (1 - \beta_2)` steps, 1,000 by default; all
          steps since the start in a shorter run, the first ones, with their large gradients, included. Its noise is
          that of `FimInfo.window` batches.
        - The factor is too large where the mean gradient counts, :math:`B \bar g^2 \gtrsim \bar F`: early in
          training, and with batches beyond the critical size. The result is then :math:`\bar F + (B - 1) \bar g^2`.
          Measured on a small classifier (`results/theory/fisher.json`): the median of f_t B over the empirical FIM is
          0.96 to 1.05 for B from 1 to 64 once it has trained for 300 steps, and 0.92 to 1.70 at step 30.
        - A long average is larger than the FIM while gradients shrink: it remembers. Measured after 200 steps of the
          three tasks' models, 3 seeds (`results/fisher/tasks.json`; sums over all layers, mean [least, greatest]):
          f_t B over the empirical FIM, what the mean gradient alone makes of it (expected), and the rank correlation
          with the true FIM:

          ========  ==  ===================  ===================  ========  =========  ===========
          task      B   beta2 0.9            beta2 0.999          expected  rank, 0.9  rank, 0.999
          ========  ==  ===================  ===================  ========  =========  ===========
          speech    1   1.09 [0.727, 1.39]   3.6 [2.86, 4.76]     1.00      0.93       0.61
          speech    4   1.33 [1.06, 1.6]     8.61 [4.46, 27.8]    1.63      0.92       0.42
          speech    16  2.24 [1.92, 2.56]    7.42 [5.91, 9.39]    2.42      0.92       0.51
          language  1   1.03 [0.939, 1.19]   1.48 [0.713, 2.61]   1.00      0.93       0.72
          language  4   1.23 [1.21, 1.26]    1.35 [1.28, 1.41]    1.09      0.94       0.77
          language  16  1.2 [1.17, 1.23]     1.19 [1.12, 1.25]    1.22      0.94       0.81
          images    1   0.567 [0.305, 1.01]  0.612 [0.419, 1.13]  1.00      0.83       0.71
          images    4   1.87 [0.929, 4.53]   1.18 [0.904, 1.72]   1.54      0.88       0.77
          images    16  4.5 [2.59, 7.75]     2.18 [1.14, 3.92]    2.92      0.93       0.83
          ========  ==  ===================  ===================  ========  =========  ===========

          With 0.9 the ratio is 0.57 to 1.5 times the expected one, with 0.999 0.61 to 5.3 times. So the equation is
          confirmed for a short average, with its second term; B alone is up to 4.5 times too large. A long average is
          larger still where the gradients have shrunk (speech), and its ranks are those of earlier weights. Single
          layers are off by more, with batches of 16 and 0.999 by up to 41 (speech, `encoder.conformer_layers.0`).
        - Samples that are not independent add up otherwise: the factor is then the number of independent ones, below B.
          Inside a sample the same makes the empirical FIM exceed the true one: pixels that the model takes for
          independent err together, and after those 200 steps their ratio is 201 to 1052, for 3,072 values an image.
        - A model that is confident and right on its training data has gradients near 0 there: the empirical FIM
          falls below the true one, by up to the probability of being wrong.
        - The state holds whatever was done to the gradient before the step. Clipping by norm gives every batch another
          scale, which no factor undoes (FAdam's own clip comes after the state). An L2 penalty in the loss adds to it,
          and so does Adam's `weight_decay`, for which a warning is given.
        - AMP: a scaler that unscales before or in the step leaves no scale; `scale` is for others.
        - Terms of the loss that are no log-likelihood (a codebook loss, a load balance) are squared with the rest.
    """
    _choice("reduction", reduction, ("mean", "sum"))
    if batch_size is not None and (not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1):
        raise _refusal("batch_size", batch_size, "a whole number of at least 1, or None")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise _refusal("scale", scale, "a finite number > 0")
    if not isinstance(optimizer, FAdam | Adam | AdamW):
        raise TypeError(f"diagonal_fim: optimizer must be a FAdam, Adam or AdamW, got {type(optimizer).__name__}")
    source = next(c.__name__ for c in (FAdam, AdamW, Adam) if isinstance(optimizer, c))
    factor = (1.0 if batch_size is None else batch_size if reduction == "mean" else 1 / batch_size) / scale**2

    found: dict[str, Tensor] = {}
    betas: set[float] = set()
    steps: set[int] = set()
    names = _names(optimizer, model)
    for group in optimizer.param_groups:
        coupled = not isinstance(optimizer, FAdam) and not group.get("decoupled_weight_decay", source == "AdamW")
        if coupled and group["weight_decay"]:
            warnings.warn(
                f"diagonal_fim: Adam added weight_decay={group['weight_decay']} times the weights to the gradients "
                "before squaring them; the estimate holds both. AdamW and FAdam keep them apart",
                stacklevel=2,
            )
        beta2 = float(group["betas"][1])
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            t = int(state["step"]) if "step" in state else 0
            if t == 0:
                continue
            moment = state["fim"] if isinstance(optimizer, FAdam) else state["exp_avg_sq"]
            moment = torch.view_as_real(moment) if moment.is_complex() else moment
            wide = moment.to(torch.promote_types(moment.dtype, torch.float32))
            correction = 1.0 if isinstance(optimizer, FAdam) else 1 - beta2**t
            value = wide * (factor / correction)
            found[names[param]] = gathered(value) if gather else value
            betas.add(beta2)
            steps.add(t)
    if not found:
        raise ValueError("diagonal_fim: the optimizer has taken no step, so it knows nothing yet")
    hashed = None if model is None or (not gather and any(map(is_sharded, model.parameters()))) else weights_hash(model)
    return Fim(
        found,
        FimInfo(
            source, float(factor), batch_size, reduction if batch_size else None, float(scale),
            _range(betas), _range(steps), None, hashed, _version(),
        ),
    )  # fmt: skip


def _names(optimizer: Optimizer, model: nn.Module | None) -> dict[Tensor, str]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if model is not None:
        names: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
        strangers = sum(p not in names for p in params)
        if strangers:
            raise ValueError(f"diagonal_fim: {strangers} of the {len(params)} parameters stepped are not the model's")
        return names
    if any("param_names" not in group for group in optimizer.param_groups):
        raise ValueError("diagonal_fim: parameters without names; give model=, or build the optimizer with named ones")
    return dict(zip(params, (n for group in optimizer.param_groups for n in group["param_names"]), strict=True))


# ---- what a pass over the data costs ---------------------------------------------------------------------------------
def empirical_fim(
    model: nn.Module, loss: Loss, data: Iterable[Any], *, method: Method = "vmap", chunk_size: int = 16
) -> Fim:
    r"""The diagonal empirical FIM, :math:`\frac1N \sum_i g_i^2`, at the model's present weights.

    Args:
        model: in evaluation mode if it has batch norm; parameters that need no gradient are left out.
        loss: `loss(model, batch)` of a batch of *one* sample, its negative log-likelihood, a tensor of one element. It
            must use the model that it is given.
        data: batches: tensors with samples along axis 0, in tuples, lists, dicts or named tuples. Anything else in
            them reaches the loss as it is.
        method: "vmap", `chunk_size` samples at once; "loop", one backward pass a sample, for models that
            `torch.func.vmap` cannot take (CTC, data-dependent control flow).
        chunk_size: samples whose gradients are held at once; memory is `chunk_size` times the parameters, whatever the
            size of the data.

    Returns:
        Of the parameters' shapes, float32 or wider; 0 where the loss does not depend on a parameter.

    Raises:
        ValueError: an option outside its range; batch norm by the batch, since there is no gradient of one sample
            then; no data; tensors of a batch whose axes 0 differ; a loss of more than one element; sharded parameters.
        RuntimeError: a model that vmap cannot take.
    """
    pass_ = _Pass(model, loss, method, chunk_size)
    for batch in data:
        n = _samples(batch)
        pass_.add(batch, torch.ones(n), n)
    return pass_.result("empirical")


def true_fim(
    model: nn.Module,
    loss: Loss,
    data: Iterable[Any],
    *,
    outcomes: Callable[[nn.Module, Any], Iterable[tuple[Any, Tensor]]] | None = None,
    sample: Callable[[nn.Module, Any, torch.Generator], Any] | None = None,
    draws: int = 1,
    seed: int = 0,
    method: Method = "vmap",
    chunk_size: int = 16,
) -> Fim:
    r"""The diagonal FIM, :math:`\frac1N \sum_i E_{y \sim p_\theta(y|x_i)}[g_i(y)^2]`, at the model's present weights.

    Exactly one of `outcomes` and `sample` says what the labels are.

    Args:
        model, loss, data, method, chunk_size: as in `empirical_fim`. The data's labels play no part.
        outcomes: for a batch, every possible outcome: a batch with those labels, and their probabilities (n,). Exact,
            for small output spaces; `every_class` does it for classifiers.
        sample: the batch with labels drawn from the model's distribution.
        draws: how many times `sample` is called for each batch.
        seed: of the generator that `sample` gets, on the CPU.

    Raises:
        ValueError, RuntimeError: as `empirical_fim`; both or neither of `outcomes` and `sample`.
    """
    if (outcomes is None) == (sample is None):
        raise ValueError("true_fim: exactly one of outcomes and sample must be given")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise _refusal("draws", draws, "a whole number of at least 1", "true_fim")
    generator = torch.Generator().manual_seed(seed)
    pass_ = _Pass(model, loss, method, chunk_size)
    for batch in data:
        n = _samples(batch)
        with torch.no_grad():
            if outcomes is not None:
                labelled = list(outcomes(model, batch))
            else:
                assert sample is not None
                labelled = [(sample(model, batch, generator), torch.full((n,), 1 / draws)) for _ in range(draws)]
        for other, weights in labelled:
            pass_.add(other, weights, 0)
        pass_.count += n
    return pass_.result("true")


def every_class(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor]]:
    """The outcomes of a classifier whose logits are `model(inputs)` (n, C), for batches (inputs, targets (n,))."""
    inputs, targets = batch
    probabilities = model(inputs).softmax(-1)  # (n, C)
    for label in range(probabilities.shape[-1]):
        yield (inputs, torch.full_like(targets, label)), probabilities[:, label]


class _Loss(nn.Module):
    """The loss as a module: `functional_call` then exchanges the parameters wherever the loss uses the model."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        value = self.loss(self.model, batch)
        if value.numel() != 1:
            raise ValueError(f"loss must give one element for a batch of one sample, got shape {tuple(value.shape)}")
        return value.reshape(())


class _Pass:
    """A sum of weighted squared gradients of single samples."""

    def __init__(self, model: nn.Module, loss: Loss, method: Method, chunk_size: int) -> None:
        _choice("method", method, ("vmap", "loop"), "Fisher pass")
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
            raise _refusal("chunk_size", chunk_size, "a whole number of at least 1", "Fisher pass")
        norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm)]
        mixing = [name for name, m in norms if m.training or m.running_mean is None]
        if mixing:
            raise ValueError(
                f"batch norm by the batch ({mixing[0]}) mixes the samples of a batch, so that no sample has a "
                "gradient of its own; call model.eval() first, and keep running statistics"
            )
        self.model, self.method, self.chunk_size = model, method, chunk_size
        self.loss = _Loss(model, loss)
        self.params = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if any(map(is_sharded, self.params.values())):
            raise ValueError("a pass over data needs whole parameters; these are sharded (DTensor)")
        self.total = {name: _zeros(p) for name, p in self.params.items()}
        self.count = 0

    def add(self, batch: Any, weights: Tensor, count: int) -> None:
        leaves, shape = tree_flatten(batch)
        for start in range(0, len(weights), self.chunk_size):
            part = slice(start, start + self.chunk_size)
            cut = [x[part] if isinstance(x, Tensor) else x for x in leaves]
            (self._vmap if self.method == "vmap" else self._loop)(cut, shape, weights[part])
        self.count += count

    def _vmap(self, leaves: list[Any], shape: Any, weights: Tensor) -> None:
        tensors = [x for x in leaves if isinstance(x, Tensor)]

        def one(params: dict[str, Tensor], sample: list[Tensor]) -> Tensor:
            rest = iter(sample)
            batch = tree_unflatten([next(rest)[None] if isinstance(x, Tensor) else x for x in leaves], shape)
            value: Tensor = functional_call(self.loss, params, (batch,))
            return value

        detached = {f"model.{name}": p.detach() for name, p in self.params.items()}
        try:
            gradients = vmap(grad(one), in_dims=(None, 0))(detached, tensors)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise RuntimeError(f'vmap cannot take this model: {reason}; use method="loop"') from error
        with torch.no_grad():
            for name, total in self.total.items():
                g = _real(gradients[f"model.{name}"]).to(total.dtype)
                total += torch.tensordot(weights.to(g), g.square(), dims=1)

    def _loop(self, leaves: list[Any], shape: Any, weights: Tensor) -> None:
        for i, weight in enumerate(weights):
            batch = tree_unflatten([x[i : i + 1] if isinstance(x, Tensor) else x for x in leaves], shape)
            with torch.enable_grad():
                value = self.loss(batch)
                gradients = torch.autograd.grad(value, list(self.params.values()), allow_unused=True)
            for total, g in zip(self.total.values(), gradients, strict=True):
                if g is not None:
                    total += weight.to(total) * _real(g).to(total.dtype).square()

    def result(self, source: str) -> Fim:
        if self.count == 0:
            raise ValueError("there are no data: no batch, or none with a sample")
        info = FimInfo(source, samples=self.count, weights=weights_hash(self.model), version=_version())
        return Fim({name: total / self.count for name, total in self.total.items()}, info)


def _samples(batch: Any) -> int:
    sizes = {x.shape[0] if x.dim() else None for x in tree_flatten(batch)[0] if isinstance(x, Tensor)}
    if len(sizes) != 1 or None in sizes:
        shapes = [tuple(x.shape) for x in tree_flatten(batch)[0] if isinstance(x, Tensor)]
        raise ValueError(f"the tensors of a batch must have its samples along axis 0, got shapes {shapes}")
    size = sizes.pop()
    assert size is not None
    return size


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def _zeros(param: Tensor) -> Tensor:
    real = _real(param.detach())
    return torch.zeros_like(real, dtype=torch.promote_types(real.dtype, torch.float32))


# ---- files -----------------------------------------------------------------------------------------------------------
def save_fim(path: str | os.PathLike[str], fim: Fim) -> None:
    """Write an estimate and its `info` to a safetensors file, whole or not at all.

    Raises:
        ImportError: safetensors is missing.
        ValueError: sharded values.
    """
    safetensors = _safetensors("save_fim")
    if any(map(is_sharded, fim.values())):
        raise ValueError("save_fim: the values are sharded (DTensor); take them with diagonal_fim(..., gather=True)")
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    values = {name: value.detach().cpu().contiguous() for name, value in fim.items()}
    try:
        safetensors.save_file(values, str(temporary), metadata={_METADATA: json.dumps(asdict(fim.info))})
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def load_fim(
    path: str | os.PathLike[str], model: nn.Module, *, partial: bool = False, same_weights: bool = False
) -> Fim:
    """Read what `save_fim` wrote, on the CPU, for a model that it fits by names and shapes.

    Args:
        model: the model to use the estimate with.
        partial: allow parameters of the model that are not in the file (frozen ones, say).
        same_weights: refuse a model whose weights are not those at which the estimate was made.

    Raises:
        ImportError: safetensors is missing.
        ValueError: another kind of file; names or shapes that do not fit the model, naming some; other weights, or
            a file that does not know which, with `same_weights`.
    """
    _safetensors("load_fim")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = (file.metadata() or {}).get(_METADATA)
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"load_fim: {path} is no safetensors file: {error}") from error
    if metadata is None:
        raise ValueError(f"load_fim: {path} was not written by save_fim")
    read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(metadata).items()}
    info = FimInfo(**{field.name: read[field.name] for field in fields(FimInfo) if field.name in read})

    expected = {name: (*p.shape, 2) if p.is_complex() else tuple(p.shape) for name, p in model.named_parameters()}
    wrong = [f"{name} (not in the model)" for name in values if name not in expected]
    wrong += [
        f"{name} ({tuple(value.shape)}, not {expected[name]})"
        for name, value in values.items()
        if name in expected and tuple(value.shape) != expected[name]
    ]
    if not partial:
        wrong += [f"{name} (missing)" for name in expected if name not in values]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise ValueError(f"load_fim: {path} does not fit the model: {', '.join(wrong[:_NAMED])}{more}")
    if same_weights and info.weights != weights_hash(model):
        known = "the file does not know its model's" if info.weights is None else "they have changed since"
        raise ValueError(f"load_fim: {path} is not of these weights: {known}")
    return Fim(values, info)


@torch.no_grad()
def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the model's parameters: names, shapes, dtypes and values. Sharded ones are gathered one by one."""
    digest = hashlib.sha256()
    for name, param in model.named_parameters():
        value = gathered(param.detach()).cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        if value.numel():
            size = value.numel() * value.element_size()
            digest.update((ctypes.c_char * size).from_address(value.data_ptr()))
    return digest.hexdigest()


def _safetensors(caller: str) -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(f"{caller} needs the package safetensors: pip install safetensors") from error
    return safetensors.torch


def _version() -> str:
    from fadam import __version__

    return __version__


def _range(values: set[Any]) -> Any:
    return values.pop() if len(values) == 1 else (min(values), max(values))


def _choice(name: str, value: object, allowed: tuple[str, ...], caller: str = "diagonal_fim") -> None:
    if value not in allowed:
        raise _refusal(name, value, "one of " + ", ".join(map(repr, allowed)), caller)


def _refusal(name: str, value: object, allowed: str, caller: str = "diagonal_fim") -> ValueError:
    return ValueError(f"{caller}: {name}={value!r} is not allowed; {name} must be {allowed}")
