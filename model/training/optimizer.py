"""AdamW or Adam over a network's parameter groups, and the learning rate at each step."""

from __future__ import annotations

import torch

from model.network import RetrievalNetwork
from model.settings import Training


def new_optimizer(network: RetrievalNetwork, recipe: Training) -> torch.optim.Optimizer:
    """The recipe's; each group keeps its `factor` of the rate, which `set_rate` sets before the first step."""
    groups = network.parameter_groups(recipe.text_lr_factor)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
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
