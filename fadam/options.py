"""The options of FAdam: their defaults, what is allowed, and the names that they had before.

No option is named after a key that others write into parameter groups: warm-ups set `momentum` where they find it, and
wrappers that perturb the weights leave their `rho` in the groups of the optimizer inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, fields
from numbers import Real
from operator import is_, itemgetter
from typing import Annotated, Any, get_type_hints

import torch
from torch import Tensor

from fadam.metric import traced

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RATE = "a finite number >= 0 or a one-element floating-point tensor of one"


# ---- what is allowed: functions of a name and a value, which return the value in its plain form ----------------------
def _number(allowed: str, valid: Callable[[float], bool]) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        if isinstance(value, Real) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number) and valid(number):
                return number
        raise _refusal(name, value, allowed)

    return check


_not_negative = _number("a finite number >= 0", lambda x: x >= 0)
_power = _number("a number in (0, 1]", lambda x: 0 < x <= 1)
_positive = _number("a finite number > 0, or None", lambda x: x > 0)
_beta = _number("a number in [0, 1)", lambda x: 0 <= x < 1)
_number_of_rate = _number(_RATE, lambda x: x >= 0)


def _positive_or_none(name: str, value: Any) -> float | None:
    return None if value is None else _positive(name, value)


def _one_of(*choices: str) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        if value not in choices:
            raise _refusal(name, value, _listed(choices))
        return str(value)

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refusal(name, value, "True or False")
    return value


def _flag_or_none(name: str, value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise _refusal(name, value, "True, False or None")
    return value


def _rate(name: str, value: Any) -> float | Tensor:
    lr = checked_rate(value)
    if isinstance(lr, Tensor) and not lr.is_meta and not traced(lr) and not 0 <= lr.item() < math.inf:
        raise _refusal(name, lr, _RATE)
    return lr


def _betas(name: str, value: Any) -> tuple[float, float]:
    try:
        beta1, beta2 = (_beta(name, _plain(x)) for x in value)
    except (TypeError, ValueError):
        raise _refusal(name, value, "two numbers in [0, 1)") from None
    return beta1, beta2


def _dtype(name: str, value: Any) -> torch.dtype | None:
    if isinstance(value, str):
        value = {str(known).removeprefix("torch."): known for known in _DTYPES}.get(value, value)
    if value is not None and value not in _DTYPES:
        raise _refusal(name, value, "None or one of " + ", ".join(map(str, _DTYPES)) + ", or its name")
    return value  # type: ignore[no-any-return]


def checked_rate(lr: Any) -> float | Tensor:
    """The learning rate as a float, or as the tensor that it is, whose number is not looked at.

    Raises:
        ValueError: if it is neither.
    """
    if type(lr) is float and 0 <= lr < math.inf:  # the usual case, in every step
        return lr
    if not isinstance(lr, Tensor):
        return _number_of_rate("lr", _plain(lr))
    if lr.numel() != 1 or not lr.is_floating_point():
        raise _refusal("lr", lr, _RATE)
    return lr


# ---- the options -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """The options of one parameter group, checked. Every implementation of the step gets this one object.

    :class:`fadam.FAdam` says what each option means. A new one is a line here (type, check, default), a line of that
    class's signature and help, and the line of each implementation that uses it.

    Numbers become plain floats, `betas` a tuple, and names of dtypes the dtypes.

    Raises:
        ValueError: for an option outside its range and for two that exclude each other, naming the option, its value
            and what is allowed.
    """

    lr: Annotated[float | Tensor, _rate] = 1e-3
    betas: Annotated[tuple[float, float], _betas] = (0.9, 0.999)
    eps: Annotated[float, _not_negative] = 1e-8
    eps2: Annotated[float, _not_negative] = 0.01
    clip: Annotated[float | None, _positive_or_none] = 1.0
    fim_rho: Annotated[float, _power] = 0.5
    weight_decay: Annotated[float, _not_negative] = 1e-3
    eps_mode: Annotated[str, _one_of("adaptive", "scaled", "fixed")] = "adaptive"
    momentum_mode: Annotated[str, _one_of("natural", "gradient")] = "natural"
    decay_mode: Annotated[str, _one_of("natural", "decoupled")] = "natural"
    correct_momentum: Annotated[bool, _flag] = False
    maximize: Annotated[bool, _flag] = False
    foreach: Annotated[bool | None, _flag_or_none] = None
    capturable: Annotated[bool, _flag] = False
    differentiable: Annotated[bool, _flag] = False
    momentum_dtype: Annotated[torch.dtype | None, _dtype] = None
    fim_dtype: Annotated[torch.dtype | None, _dtype] = None
    fused: Annotated[bool | None, _flag_or_none] = None
    stochastic_rounding: Annotated[bool, _flag] = False

    def __post_init__(self) -> None:
        if torch.compiler.is_dynamo_compiling():  # constants of a graph, which were checked when they were set
            return
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, _plain(getattr(self, name))))
        for name, other in _EXCLUSIVE:
            if getattr(self, name) and getattr(self, other):
                allowed = "False" if _CHECKS[name] is _flag else "False or None"
                raise _refusal(name, True, f"{allowed} with {other}=True")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Options:
        """Those of a parameter group, or of any mapping that has all of them among its keys.

        Raises:
            ValueError: as the class.
        """
        return cls(**{name: values[name] for name in DEFAULTS})

    def as_dict(self) -> dict[str, Any]:
        """By name, as parameter groups have them."""
        return {name: getattr(self, name) for name in DEFAULTS}

    def with_lr(self, lr: Any) -> Options:
        """The same with another learning rate. Nothing else is checked again, since schedulers do this at every step.

        Raises:
            ValueError: for what is no learning rate.
        """
        other = object.__new__(Options)
        other.__dict__.update(self.__dict__, lr=checked_rate(lr))
        return other

    @property
    def rate(self) -> float | Tensor:
        """`lr` as a float or a tensor of no dimension."""
        return self.lr.reshape(()) if isinstance(self.lr, Tensor) else self.lr

    @property
    def beta1(self) -> float:
        return self.betas[0]

    @property
    def beta2(self) -> float:
        return self.betas[1]

    @property
    def published(self) -> bool:
        """Whether no switch leaves the published algorithm, which is all that fused implementations know."""
        return self.momentum_mode == "natural" and self.decay_mode == "natural" and not self.correct_momentum


DEFAULTS: dict[str, Any] = {option.name: option.default for option in fields(Options)}
DTYPES = ("momentum_dtype", "fim_dtype")
RENAMED = {"momentum": "momentum_mode", "decay": "decay_mode", "rho": "fim_rho"}
_OLD_WORDS = {"momentum": ("natural", "gradient"), "decay": ("natural", "decoupled")}
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(Options, include_extras=True).items()
}
_EXCLUSIVE = (
    ("foreach", "differentiable"),
    ("fused", "differentiable"),
    ("fused", "foreach"),
    ("stochastic_rounding", "differentiable"),
)


class Watched:
    """The options of one group at each step: checked anew where the group holds another object than before."""

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] = ()
        self._options: Options

    def __call__(self, group: Mapping[str, Any]) -> Options:
        """
        Raises:
            ValueError: as `Options`.
        """
        seen = _but_the_rate(group)
        if not self._seen or not all(map(is_, seen, self._seen)):
            self._options = Options.of({**group, "lr": 0.0})
            self._seen = seen if type(group["betas"]) is tuple else ()  # a list may change and stay the same object
        if group["lr"] is not self._options.lr:
            self._options = self._options.with_lr(group["lr"])
        return self._options


_but_the_rate = itemgetter(*(name for name in DEFAULTS if name != "lr"))


# ---- parameter groups and what was saved -----------------------------------------------------------------------------
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
        if group.get(old) in _OLD_WORDS.get(old, ()):
            raise ValueError(f"FAdam: {old}={group[old]!r} in a parameter group sets nothing; its name is {name}")


def renew(options: MutableMapping[str, Any]) -> None:
    """Give what an older version saved its name of today, and its default to what that did not know.

    Raises:
        ValueError: for a value that was written over the option by somebody else.
    """
    for old, name in RENAMED.items():
        if name not in options and old in options:
            value = options[old]
            words = _OLD_WORDS.get(old)
            if words is not None and value not in words:
                raise _refusal(old, value, _listed(words) + f" where there is no {name}: it was an option's name")
            options[name] = options.pop(old)
    for name, value in DEFAULTS.items():
        options.setdefault(name, value)


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


def _listed(choices: tuple[str, ...]) -> str:
    return "one of " + ", ".join(map(repr, choices))


def _refusal(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"FAdam: {name}={value!r} is not allowed; {name} must be {allowed}")
