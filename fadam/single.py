"""The single-tensor loop: one tensor after the other, one line of Algorithm 1 after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from fadam.bookkeeping import Tensors
from fadam.metric import (
    Undo,
    bias_correction,
    clip_divisor,
    count,
    dense_strides,
    empirical_fim,
    epsilon,
    metric,
    natural,
    stochastic_bfloat16,
    store,
    working_dtype,
)
from fadam.options import Options


class SingleBackend:
    """A backend (see `fadam.backend.Backend`) for every option and device, and the only one that autograd sees into."""

    def __init__(self, tensors: Tensors, options: Options) -> None:
        self.tensors, self.options = tensors, options

    def run(self) -> None:
        tensors = self.tensors
        undo = Undo(tensors.found_inf, tensors.params, tensors.momentums, tensors.fims)
        for i, (param, grad, momentum, fim, step) in enumerate(zip(*tensors.four, tensors.steps, strict=True)):
            index = i if tensors.indices is None else tensors.indices[i]
            self._step(param, grad, momentum, fim, step, index)
        undo()

    def _step(self, param: Tensor, grad: Tensor, momentum: Tensor, fim: Tensor, step: Tensor, index: int) -> None:
        """Write f_t, m_t and theta_t of one tensor; `index` is its number for the random bits."""
        options = self.options
        clip, beta1 = options.clip, options.beta1
        t = count(step, options.capturable)
        dtype = working_dtype(param, grad, momentum, fim)
        theta = param.to(dtype)
        if options.differentiable:
            theta = theta.clone()  # autograd keeps it, and the parameter is about to change
        g = grad.to(dtype)
        if self.tensors.grad_scale is not None:
            g = g / self.tensors.grad_scale
        if options.maximize:
            g = -g

        f = empirical_fim(fim.to(dtype), g, options.beta2, t)
        store(fim, f)
        eps_t = epsilon(g, options.eps, options.eps2, options.eps_mode)
        d = metric(f, eps_t, options.fim_rho, options.differentiable)

        m = momentum.to(dtype) * beta1
        if options.momentum_mode == "natural":
            n = g / d
            if clip is not None:
                n = n / clip_divisor(n, clip)
            m = m.add(n, alpha=1 - beta1)
            store(momentum, m)
            update = m / bias_correction(beta1, t) if options.correct_momentum else m
        else:
            m = m.add(g, alpha=1 - beta1)
            store(momentum, m)
            update = natural(m / bias_correction(beta1, t) if options.correct_momentum else m, d)
            if clip is not None:
                update = update / clip_divisor(update, clip)
            update = update + (g - g)  # NaN where g is infinite, which `natural` has made a finite number

        if options.weight_decay != 0:
            w = theta
            if options.decay_mode == "natural":
                w = natural(theta, d)
                if clip is not None:
                    w = w / clip_divisor(w, clip)
            update = update.add(w, alpha=options.weight_decay)

        lr = options.rate
        if options.stochastic_rounding and param.dtype == torch.bfloat16:
            param.copy_(stochastic_bfloat16(theta - update * lr, t, index, strides=dense_strides(param)))
        # In place with the promoted dtype: a bfloat16 parameter is rounded once, after the subtraction.
        elif isinstance(lr, Tensor):
            param.sub_(update * lr)
        else:
            param.sub_(update, alpha=lr)
