"""The options of FAdam: their defaults, what is allowed, and the names that they had before.

No option is named after a key that others write into parameter groups: warm-ups set `momentum` where they find it, and
wrappers that perturb the weights leave their `rho` in the groups of the optimizer inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from numbers import Real
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor

from fadam.metric import traced

DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "eps2": 0.01,
    "clip": 1.0,
    "fim_rho": 0.5,
    "weight_decay": 1e-3,
    "eps_mode": "adaptive",
    "momentum_mode": "natural",
    "decay_mode": "natural",
    "correct_momentum": False,
    "maximize": False,
    "foreach": None,
    "capturable": False,
    "differentiable": False,
    "momentum_dtype": None,
    "fim_dtype": None,
    "fused": None,
    "stochastic_rounding": False,
}
DTYPES = ("momentum_dtype", "fim_dtype")
RENAMED = {"momentum": "momentum_mode", "decay": "decay_mode", "rho": "fim_rho"}

_CHOICES = {
    "eps_mode": ("adaptive", "scaled", "fixed"),
    "momentum_mode": ("natural", "gradient"),
    "decay_mode": ("natural", "decoupled"),
}
_FLAGS = ("correct_momentum", "maximize", "capturable", "differentiable", "stochastic_rounding")
_STATE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RATE = "a finite number >= 0 or a one-element floating-point tensor of one"


def refuse_unknown(names: Mapping[str, Any]) -> None:
    """
    Raises:
        TypeError: for any name at all, with today's name of what had another.
    """
    for name in names:
        now = f"; its name is {RENAMED[name]}" if name in RENAMED else "; there are " + ", ".join(DEFAULTS)
        raise TypeError(f"FAdam has no option {name}{now}")


def refuse_old(group: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: for a group that sets an option by its old name; a number under it is somebody else's.
    """
    for old, name in RENAMED.items():
        if group.get(old) in _CHOICES.get(name, ()):
            raise ValueError(f"FAdam: {old}={group[old]!r} in a parameter group sets nothing; its name is {name}")


def renew(options: MutableMapping[str, Any]) -> None:
    """Give what an older version saved its name of today, and its default to what that did not know.

    Raises:
        ValueError: for a value that was written over the option by somebody else.
    """
    for old, name in RENAMED.items():
        if name not in options and old in options:
            value = options[old]
            choices = _CHOICES.get(name)
            if choices is not None and value not in choices:
                allowed = _one_of(choices) + f" where there is no {name}: it was an option's name"
                raise _refusal(old, value, allowed)
            options[name] = options.pop(old)
    for name, value in DEFAULTS.items():
        options.setdefault(name, value)


def checked_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, without other keys, with numbers as plain floats, betas as a tuple and dtypes as such.

    Raises:
        ValueError: naming the first option that is outside its range, its value and what is allowed.
    """
    checked = {name: _plain(options[name]) for name in DEFAULTS}
    lr = checked["lr"] = checked_rate(checked["lr"])
    if isinstance(lr, Tensor) and not lr.is_meta and not traced(lr) and not 0 <= lr.item() < math.inf:
        raise _refusal("lr", lr, _RATE)

    betas = checked["betas"]
    try:
        pair = dict(zip(("beta1", "beta2"), map(_plain, betas), strict=True))
        checked["betas"] = tuple(_number(k, x, "[0, 1)", lambda x: 0 <= x < 1) for k, x in pair.items())
    except (TypeError, ValueError):
        raise _refusal("betas", betas, "two numbers in [0, 1)") from None

    for name in ("eps", "eps2", "weight_decay"):
        checked[name] = _number(name, checked[name], "a finite number >= 0", lambda x: x >= 0)
    checked["fim_rho"] = _number("fim_rho", checked["fim_rho"], "a number in (0, 1]", lambda x: 0 < x <= 1)
    if checked["clip"] is not None:
        checked["clip"] = _number("clip", checked["clip"], "a finite number > 0, or None", lambda x: x > 0)

    for name, choices in _CHOICES.items():
        if checked[name] not in choices:
            raise _refusal(name, checked[name], _one_of(choices))
    for name in _FLAGS:
        if not isinstance(checked[name], bool):
            raise _refusal(name, checked[name], "True or False")
    for name in ("foreach", "fused"):
        if checked[name] is not None and not isinstance(checked[name], bool):
            raise _refusal(name, checked[name], "True, False or None")
        if checked[name] and checked["differentiable"]:
            raise _refusal(name, True, "False or None with differentiable=True")
    if checked["fused"] and checked["foreach"]:
        raise _refusal("fused", True, "False or None with foreach=True")
    if checked["stochastic_rounding"] and checked["differentiable"]:
        raise _refusal("stochastic_rounding", True, "False with differentiable=True")
    for name in DTYPES:
        dtype = checked[name]
        if isinstance(dtype, str):
            dtype = {str(known).removeprefix("torch."): known for known in _STATE_DTYPES}.get(dtype, dtype)
        if dtype is not None and dtype not in _STATE_DTYPES:
            raise _refusal(name, dtype, "None or one of " + ", ".join(map(str, _STATE_DTYPES)) + ", or its name")
        checked[name] = dtype
    return checked


def checked_rate(lr: Any) -> float | Tensor:
    """The learning rate as a float, or as the tensor that it is, whose number is not looked at.

    Raises:
        ValueError: if it is neither.
    """
    if type(lr) is float and 0 <= lr < math.inf:  # the usual case, in every step
        return lr
    if not isinstance(lr, Tensor):
        return _number("lr", _plain(lr), _RATE, lambda x: x >= 0)
    if lr.numel() != 1 or not lr.is_floating_point():
        raise _refusal("lr", lr, _RATE)
    return lr


class Checked:
    """The options of one group at each step: looked at anew where the group holds another object than before."""

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] = ()
        self._options: dict[str, Any] = {}

    def __call__(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """
        Raises:
            ValueError: as `checked_options`.
        """
        lr = checked_rate(group["lr"])
        seen = _but_the_rate(group)
        if not self._seen or not all(map(is_, seen, self._seen)):
            self._options = checked_options({**group, "lr": 0.0})
            self._seen = seen if type(group["betas"]) is tuple else ()  # a list may change and stay the same object
        return {**self._options, "lr": lr}


_but_the_rate = itemgetter(*(name for name in DEFAULTS if name != "lr"))


def to_save(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as every format of a state dict can hold them: numbers of Python, and dtypes as their names."""
    plain = {name: _plain(value) for name, value in options.items() if name in DEFAULTS}
    plain["betas"] = tuple(map(_plain, plain["betas"]))
    for name in DTYPES:
        if plain[name] is not None:
            plain[name] = str(plain[name]).removeprefix("torch.")
    return plain


def _plain(value: Any) -> Any:
    """A number, string or truth value of numpy as one of Python; anything else as it is."""
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _number(name: str, value: Any, allowed: str, valid: Callable[[float], bool]) -> float:
    if isinstance(value, Real) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and valid(number):
            return number
    raise _refusal(name, value, allowed)


def _one_of(choices: tuple[str, ...]) -> str:
    return "one of " + ", ".join(map(repr, choices))


def _refusal(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"FAdam: {name}={value!r} is not allowed; {name} must be {allowed}")
