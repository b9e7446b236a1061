"""The FAdam optimizer class: options, state, and the step that hands both to the functional form."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from fadam.backend import Taken, take_path, unavailable
from fadam.bookkeeping import Tensors, as_real, gathered, is_sharded, local_part
from fadam.functional import take
from fadam.options import DTYPES, Options, Watched, refuse_old, refuse_unknown, renew, to_save

STATE_KEYS = ("step", "momentum", "fim")


class FAdam(Optimizer):
    """Fisher Adam: natural gradient descent with a diagonal empirical Fisher information matrix (FIM).

    Algorithm 1 of Dongseong Hwang, *FAdam: Adam is a natural gradient optimizer using diagonal empirical Fisher
    information*, arXiv:2405.12807. theta is a parameter tensor, g_t its gradient of a negative log-likelihood, m_0 = 0
    and f_0 = 1. All is elementwise, but RMS(x) = sqrt(mean(x^2)) is over the tensor::

        beta2_t = beta2 (1 - beta2^(t-1)) / (1 - beta2^t)
        f_t     = beta2_t f_{t-1} + (1 - beta2_t) g_t^2             FIM
        eps_t   = min(eps, eps2 RMS(g_t))
        d_t     = f_t^rho + eps_t^(2 rho)                           metric; where it is 0, n_t = w_t = 0
        n_t     = g_t / d_t,          divided by max(1, RMS(n_t) / clip)
        m_t     = beta1 m_{t-1} + (1 - beta1) n_t
        w_t     = theta_{t-1} / d_t,  divided by max(1, RMS(w_t) / clip)
        theta_t = theta_{t-1} - lr (m_t + weight_decay w_t)

    Each parameter has the states ``step`` (t, 0-d float32), ``momentum`` (m_t) and ``fim`` (f_t), of its shape. The
    manual, docs/fadam.md, has the details: state, arithmetic, implementations, sharding, gradient scaling, all caveats.

    Args:
        params: parameters, named parameters, or parameter groups, which may override every option.
        lr: learning rate, a float or a one-element tensor, which no step reads on the host.
        betas: decay of momentum and FIM, beta1 and beta2, each in [0, 1).
        eps: upper bound of eps_t, in units of the gradient.
        eps2: eps_t relative to RMS(g_t), where that is below `eps`.
        clip: largest RMS of n_t and of w_t over one tensor; None is no clipping.
        fim_rho: power rho of the FIM, in (0, 1]; 0.5 is Adam's square root.
        weight_decay: lambda of the paper, in the metric: not AdamW's.
        eps_mode: "adaptive", as above; "scaled", eps min(1, RMS(g_t)); "fixed", eps.
        momentum_mode: "natural" averages n_t; "gradient" averages g_t, as Adam does, before metric and clip.
        decay_mode: "natural", w_t; "decoupled", AdamW's theta (1 - lr weight_decay), without metric and clip.
        correct_momentum: divide the average by 1 - beta1^t, as Adam does.
        maximize: ascend instead; the weight decay still shrinks.
        foreach: True is the multi-tensor implementation, False the single-tensor loop. None chooses.
        capturable: keep t on the device, so that a CUDA graph can hold a step. Set it before the first step.
        differentiable: let autograd record the step, of parameters that are not leaves.
        momentum_dtype, fim_dtype: dtype of a state, or its name ("bfloat16"); None is the parameter's.
        fused: True is C++ on the CPU and Triton on CUDA devices. None takes the C++ where it can be had, which
            :meth:`paths` tells, and on GPUs another implementation.
        stochastic_rounding: round bfloat16 parameters up or down at random, so that small steps add up.

    Raises:
        ValueError: for an option outside its range, at any time; for parameters flattened by FSDP1; for a state
            that does not fit its parameter.
        RuntimeError: for ``fused=True`` where that cannot be had, and for a sparse gradient.

    Caveats:
        - The loss should be the negative log-probability of a discrete distribution, such as cross entropy. Squared
          gradients are a poor stand-in for the Fisher information otherwise.
        - Clip nowhere else: the step clips each tensor by itself.
        - Entries that no gradient has touched (embeddings of unseen tokens) take up the clip of w_t, so that the rest
          of their tensor hardly decays. A group with ``weight_decay=0`` or ``decay_mode="decoupled"`` avoids it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        eps2: float = 0.01,
        clip: float | None = 1.0,
        fim_rho: float = 0.5,
        weight_decay: float = 1e-3,
        *,
        eps_mode: str = "adaptive",
        momentum_mode: str = "natural",
        decay_mode: str = "natural",
        correct_momentum: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        momentum_dtype: torch.dtype | str | None = None,
        fim_dtype: torch.dtype | str | None = None,
        fused: bool | None = None,
        stochastic_rounding: bool = False,
        **unknown: NoReturn,
    ) -> None:
        refuse_unknown(unknown)
        options = Options.of(locals())  # of the arguments above
        self._watched: list[Watched] = []
        super().__init__(params, options.as_dict())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; options it does not give are those of the constructor.

        Raises:
            ValueError: for an option outside its range, and for a parameter that FAdam cannot step.
            RuntimeError: for ``fused=True`` where that cannot be had.
        """
        if isinstance(param_group, dict):
            refuse_old(param_group)
            param_group.update(Options.of({**self.defaults, **param_group}).as_dict())
        before = len(self.param_groups)
        super().add_param_group(param_group)
        try:
            for group in self.param_groups[before:]:
                _check_params(group)
        except Exception:
            del self.param_groups[before:]
            raise

    @property
    def _step_supports_amp_scaling(self) -> bool:
        # torch.amp.GradScaler then leaves unscaling and skipping to `step`, through `grad_scale` and `found_inf`.
        return all(group["fused"] for group in self.param_groups)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle or a state dict. Options that an older one lacks get their defaults, and options that
        had another name then get today's.

        Raises:
            ValueError: for an option outside its range.
        """
        super().__setstate__(state)
        self._watched = []
        renew(self.defaults)
        for group in self.param_groups:
            renew(group)
            group.update(Options.of(group).as_dict())

    def state_dict(self) -> dict[str, Any]:
        """The state and the groups' options. Dtypes are saved by name, because what gathers state dicts from several
        processes knows numbers, strings and tensors only."""

        def named(_: Optimizer, packed: dict[str, Any]) -> None:
            for group in packed["param_groups"]:
                group.update(to_save(group))

        # Before the hooks of others, which may return whatever they like.
        with self.register_state_dict_post_hook(named, prepend=True):
            state_dict: dict[str, Any] = super().state_dict()
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict; its tensors are copied.

        Its options win, but for a `momentum_dtype` or `fim_dtype` that this optimizer was built with: the states are
        cast to it then, with a warning if that narrows them. Other states keep the dtypes they were saved with, unless
        both sides leave them to the parameter and it has a wider one now.

        Raises:
            ValueError: if a parameter's state is not FAdam's or of another shape than the parameter, if the groups do
                not match, or for an option outside its range. Nothing is changed then.
        """
        # Base class and hooks may replace the dict, so that only the last pre-hook knows what is loaded.
        loaded: dict[str, Any] = {}
        narrowed: dict[str, str] = {}
        asked = [{name: group[name] for name in DTYPES} for group in self.param_groups]

        def check(_: Optimizer, final: dict[str, Any]) -> None:
            for group in final["param_groups"]:
                renew(options := dict(group))
                Options.of(options)
            # What stands under other keys than the parameters' is somebody else's, and is kept.
            for key in [key for group in final["param_groups"] for key in group["params"] if key in final["state"]]:
                entry = final["state"][key]
                held = sorted(name for name, value in entry.items() if value is not None)
                if not {*STATE_KEYS} <= {*held}:
                    raise ValueError(
                        f"FAdam: the state of parameter {key} has {held}, not {sorted(STATE_KEYS)}; "
                        "it is not a state of FAdam"
                    )
            for group, saved in zip(self.param_groups, final["param_groups"], strict=False):  # the base class counts
                names = group.get("param_names", saved["params"])
                for name, key, param in zip(names, saved["params"], group["params"], strict=False):
                    if key in final["state"]:
                        _check_shapes(name, param, final["state"][key])
            loaded.update(final)

        def restore(_: Optimizer) -> None:
            keys = [key for group in loaded["param_groups"] for key in group["params"]]
            for group, dtypes in zip(self.param_groups, asked, strict=True):
                group.update({name: dtype for name, dtype in dtypes.items() if dtype is not None})
            params = [
                (p, group, dtypes)
                for group, dtypes in zip(self.param_groups, asked, strict=True)
                for p in group["params"]
            ]
            for key, (param, group, dtypes) in zip(keys, params, strict=True):
                if key not in loaded["state"]:
                    continue
                saved, state = loaded["state"][key], self.state[param]
                state["step"] = _step_count(saved["step"], param, Options.of(group))
                for name in ("momentum", "fim"):
                    dtype = dtypes[f"{name}_dtype"] or _kept_dtype(saved[name], param, group[f"{name}_dtype"])
                    if torch.promote_types(saved[name].dtype, dtype) != dtype:
                        narrowed[name] = f"{saved[name].dtype} to {dtype}"
                    state[name] = saved[name].to(device=param.device, dtype=dtype, copy=True)

        with (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ):
            super().load_state_dict(state_dict)
        for name, change in narrowed.items():
            warnings.warn(
                f"FAdam: the loaded {name} states are narrowed from {change}, the {name}_dtype that this optimizer was "
                "built with; build it without to keep them",
                stacklevel=2,
            )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step on every parameter that has a gradient.

        Args:
            closure: evaluates the model anew, with gradients, and returns the loss, which is then returned.
        """
        self._check_capture()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # All groups are checked before the first update, so that one that is refused leaves every parameter as it was.
        every = self._options()
        stepped = [[p for p in group["params"] if _has_dense_grad(p)] for group in self.param_groups]
        groups: list[tuple[Tensors, Options]] = []
        first = 0  # number of the group's first parameter among all of the optimizer's
        for group, options, params in zip(self.param_groups, every, stepped, strict=True):
            groups.append((self._tensors(group["params"], params, options, first), options))
            first += len(group["params"])
        take(groups, grad_scale=self._scaler_number("grad_scale"), found_inf=self._scaler_number("found_inf"))
        return loss

    @torch.no_grad()
    def paths(self) -> list[dict[str, Taken]]:
        """Which implementation would step each group's parameters now, by the type of their device, and why not the
        fused one: ``[{"cpu": Taken(path="single", reason="there is no C++ compiler ...")}]``.

        Nothing is changed, but the C++ may be compiled. A gradient that is missing counts as one like its parameter.

        Raises:
            RuntimeError: for ``fused=True`` where that cannot be had.
        """
        found: list[dict[str, Taken]] = []
        for group, options in zip(self.param_groups, self._options(), strict=True):
            by_device: dict[str, list[Tensor]] = {}
            for p in group["params"]:
                if p.numel() > 0:
                    by_device.setdefault(p.device.type, []).append(p)
            found.append({device: self._path(params, options) for device, params in by_device.items()})
        return found

    def _path(self, params: list[Tensor], options: Options) -> Taken:
        rows: list[list[Tensor]] = []
        for p in params:
            real = as_real(local_part(p.detach()))
            grad = real if p.grad is None else as_real(local_part(p.grad))
            state = self.state.get(p, {})
            if "step" in state:
                row = [local_part(state[name]) for name in ("momentum", "fim", "step")]
            elif options.capturable:  # where the strides of the states matter
                row = [initial_state(real, options)[name] for name in ("momentum", "fim", "step")]
            else:
                one, dtypes = real.new_ones(()), (options.momentum_dtype, options.fim_dtype)
                row = [*(one.to(dtype or one.dtype).expand(real.shape) for dtype in dtypes)]
                row.append(one.to(_step_device(p, options), torch.float32))
            rows.append([real, grad, *row])
        lists: list[list[Tensor]] = [list(column) for column in zip(*rows, strict=True)]
        taken = take_path(Tensors(*lists), options)
        if taken.path == "single" and any(map(is_sharded, params)):  # which the loop does not know
            return Taken("foreach", taken.reason)
        return taken

    def _options(self) -> list[Options]:
        """Those of each group, checked."""
        if torch.compiler.is_compiling():  # the groups hold constants of the graph then
            return [Options.of(group) for group in self.param_groups]
        while len(self._watched) < len(self.param_groups):
            self._watched.append(Watched())
        return [watched(group) for watched, group in zip(self._watched, self.param_groups, strict=False)]

    def _tensors(self, every: list[Tensor], params: list[Tensor], options: Options, first: int) -> Tensors:
        """Those of one group that have a gradient, with their states, of which new ones are made. `every` are all of
        its parameters, and `first` is the number of the first one among all of the optimizer's."""
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if "step" not in state:  # others may have put something there
                state.update(initial_state(p, options))
            elif not isinstance(state["step"], Tensor) or state["step"].dtype != torch.float32:
                state["step"] = _step_count(state["step"], p, options)
        indices = None
        if options.stochastic_rounding:  # whether others have gradients must not matter
            indices = [i for i, p in enumerate(every, first) if p.grad is not None]
        return Tensors(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["momentum"] for state in states],
            [state["fim"] for state in states],
            [state["step"] for state in states],
            indices=indices,
        )

    def _scaler_number(self, name: str) -> Tensor | None:
        """What a scaler has set for this step; a DTensor where the gradients are."""
        number = getattr(self, name, None)
        if number is None:
            return None
        if not isinstance(number, Tensor):  # a scaler that has seen no gradient says found_inf = 0, the number
            return torch.tensor(float(number), dtype=torch.float32, device="cpu")
        return gathered(number)

    def _check_capture(self) -> None:
        if torch.compiler.is_compiling() or not torch.cuda.is_available():
            return
        if not torch.cuda.is_current_stream_capturing():
            return
        for group in self.param_groups:
            if not group["capturable"]:
                raise RuntimeError("FAdam: capturing a step in a CUDA graph needs capturable=True in every group")
            if isinstance(group["lr"], Tensor) and group["lr"].is_cpu:
                raise RuntimeError(
                    "FAdam: a CUDA graph would keep the number that lr, a tensor on the host, has in the capture; put "
                    "it on the parameters' device to change it between replays, or make it a float"
                )


def initial_state(param: Tensor, options: Options) -> dict[str, Tensor]:
    """t = 0, m_0 = 0 and f_0 = 1 for one parameter, in the options' dtypes."""
    real = as_real(param)
    return {
        "step": torch.zeros((), dtype=torch.float32, device=_step_device(param, options)),
        "momentum": torch.zeros_like(
            real, dtype=options.momentum_dtype, memory_format=torch.preserve_format, requires_grad=False
        ),
        "fim": torch.ones_like(real, dtype=options.fim_dtype, memory_format=torch.preserve_format, requires_grad=False),
    }


def _kept_dtype(state: Tensor, param: Tensor, option: torch.dtype | None) -> torch.dtype:
    """The dtype of a loaded state that nobody asked for: its own, or the parameter's where that holds it."""
    own = param.dtype.to_real()
    return own if option is None and torch.promote_types(state.dtype, own) == own else state.dtype


def _step_device(param: Tensor, options: Options) -> torch.device:
    # On the host, a step count costs no kernel; but a scaler's found_inf, which may take a step back, is on the device.
    return param.device if options.capturable or options.fused else torch.device("cpu")


def _step_count(count: Any, param: Tensor, options: Options) -> Tensor:
    """A number or tensor of any dtype as a new state `step`."""
    step = count if isinstance(count, Tensor) else torch.tensor(count, device="cpu")
    return step.to(_step_device(param, options), torch.float32, copy=True).reshape(())


def _check_shapes(name: object, param: Tensor, state: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: for a state of another shape than its parameter: implementations that pass addresses would write
            beyond its end.
    """
    expected = (*param.shape, 2) if param.is_complex() else tuple(param.shape)
    for key in ("momentum", "fim"):
        if tuple(state[key].shape) != expected:
            raise ValueError(
                f"FAdam: the state of parameter {name} is another's: its {key} has the shape "
                f"{tuple(state[key].shape)}, not {expected}, for a parameter of shape {tuple(param.shape)}"
            )
    step = state["step"]
    if isinstance(step, Tensor) and step.numel() != 1:
        raise ValueError(f"FAdam: the step of parameter {name} has the shape {tuple(step.shape)}; it is one number")


def _check_param(param: Tensor) -> None:
    """
    Raises:
        ValueError: for what FSDP1 has flattened: RMS is over a tensor of the model, and these are not.
    """
    # The first is set on a FlatParameter, the second on it and, with use_orig_params, on the views into it.
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise ValueError(
            "FAdam: a parameter that FullyShardedDataParallel has flattened cannot be stepped: FAdam needs the RMS "
            "over each whole tensor of the model, and what a process holds here are pieces of several; shard the "
            "model with torch.distributed.fsdp.fully_shard (FSDP2) instead"
        )
    if param.is_complex() and is_sharded(param):
        raise ValueError("FAdam: complex parameters cannot be sharded; keep them as real ones with a last axis of 2")


def _check_params(group: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: for a parameter that FAdam cannot step.
        RuntimeError: for ``fused=True`` where that cannot be had.
    """
    for param in group["params"]:
        _check_param(param)
    options = Options.of(group)
    if options.fused and options.published:
        for device in {p.device.type for p in group["params"]} - {"meta"}:  # those may get a device yet
            reason = unavailable(options, device)
            if reason is not None:
                raise RuntimeError(f"FAdam: fused=True is not available: {reason}")


def _has_dense_grad(param: Tensor) -> bool:
    if param.grad is None:
        return False
    if getattr(param, "_fsdp_flattened", False):  # FSDP1 may have come after the optimizer
        _check_param(param)
    if param.grad.is_sparse:
        raise RuntimeError("FAdam does not support sparse gradients; use sparse=False in the embedding")
    return True
