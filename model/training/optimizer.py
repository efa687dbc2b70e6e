"""AdamW or Adam over a network's parameter groups, and the learning rate at each step."""

from __future__ import annotations

import inspect

import torch

from model.network import RetrievalNetwork
from model.settings import Training


def new_optimizer(network: RetrievalNetwork, recipe: Training) -> torch.optim.Optimizer:
    """The recipe's; each group keeps its `factor` of the rate, which `set_rate` sets before the first step."""
    groups = network.parameter_groups(recipe.text_lr_factor)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    kind = kind if recipe.compile else _uncompiled(kind)
    return kind(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, recipe: Training, *, epoch: int, step: int) -> float:
    """Set the learning rate of a step (both from 0): by step and epoch alone, so that training can go on anywhere.

    Returns:
        That of the groups with factor 1.
    """
    decays = sum(epoch >= decay for decay in recipe.lr_decay_epochs)
    warmup = min(1.0, (step + 1) / recipe.lr_warmup_steps) if recipe.lr_warmup_steps else 1.0
    rate = recipe.learning_rate * warmup * recipe.lr_decay_factor**decays
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


def _uncompiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The same optimiser without torch's compiler, which it imports to be kept from it: that takes longer than `import torch`."""
    plain = inspect.getmembers(kind, lambda member: hasattr(member, "__wrapped__"))
    methods = {name: inspect.unwrap(method) for name, method in plain}
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(methods["step"])})
