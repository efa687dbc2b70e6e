"""3SHNet straight from its formulae: one sample, one token, one GRU step at a time, in float64. The tests' oracle.

Weights are passed as a dict from `state_dict()` (any float dtype, may require gradients); samples as lists.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

BN_EPS, LN_EPS = 1e-5, 1e-5


def linear(w, name, x):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def batch_norm(w, name, items, training):
    """items: list of (rows, C), one per sample; the statistics run over the rows of all samples."""
    if training:
        rows = torch.cat(items)
        mean, var = rows.mean(0), rows.var(0, unbiased=False)
    else:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    return [(x - mean) / torch.sqrt(var + BN_EPS) * w[f"{name}.weight"] + w[f"{name}.bias"] for x in items]


def mlp(w, name, items, training):
    hidden = batch_norm(w, f"{name}.norm", [linear(w, f"{name}.hidden", x) for x in items], training)
    return [linear(w, f"{name}.output", torch.relu(x)) for x in hidden]


def concept(w, name, x):
    x = torch.relu(linear(w, f"{name}.linear", x))
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / torch.sqrt(var + LN_EPS) * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]


def positions(length, width):
    table = torch.zeros(length, width, dtype=torch.float64)
    for position in range(length):
        for i in range(0, width, 2):
            angle = position / 10000 ** (i / width)
            table[position, i], table[position, i + 1] = math.sin(angle), math.cos(angle)
    return table


def gru(w, name, inputs, suffix):
    """One direction of a GRU over (L, P), step by step from zero."""
    hidden = w[f"{name}.weight_hh_l0{suffix}"].shape[1]
    state, states = torch.zeros(hidden, dtype=torch.float64), []
    for x in inputs:
        given = w[f"{name}.weight_ih_l0{suffix}"] @ x + w[f"{name}.bias_ih_l0{suffix}"]
        carried = w[f"{name}.weight_hh_l0{suffix}"] @ state + w[f"{name}.bias_hh_l0{suffix}"]
        reset = torch.sigmoid(given[:hidden] + carried[:hidden])
        update = torch.sigmoid(given[hidden : 2 * hidden] + carried[hidden : 2 * hidden])
        candidate = torch.tanh(given[2 * hidden :] + reset * carried[2 * hidden :])
        state = (1 - update) * candidate + update * state
        states.append(state)
    return torch.stack(states)


def pool_weights(w, name, length):
    table = positions(length, w[f"{name}.gru.weight_ih_l0"].shape[1])
    forward = gru(w, f"{name}.gru", table, "")
    backward = gru(w, f"{name}.gru", table.flip(0), "_reverse").flip(0)
    return torch.softmax(linear(w, f"{name}.score", (forward + backward) / 2)[:, 0] / 0.1, dim=0)


def pool(w, name, items):
    pooled = []
    for tokens in items:
        weights = pool_weights(w, name, len(tokens))
        columns = [tokens[:, e].sort(descending=True).values @ weights for e in range(tokens.shape[1])]
        pooled.append(torch.stack(columns))
    return pooled


def normalise(x):
    return x / (x.norm() + 1e-8)


def semantic(w, tokens, lengths, segments, training):
    """tokens: list of (K, E), padding included; segments: list of (C, 7, 7)."""
    size = tokens[0].shape[1]
    tokens = [a + b for a, b in zip(mlp(w, "image.semantic.token_mlp", tokens, training), tokens, strict=True)]
    query = [concept(w, "image.semantic.query_embedding", s.mean((1, 2)))[None] for s in segments]
    query = [a + b for a, b in zip(mlp(w, "image.semantic.query_mlp", query, training), query, strict=True)]
    out = []
    for sample, length, q in zip(tokens, lengths, query, strict=True):
        rows = []
        for j, token in enumerate(sample):
            valid = j < length
            gate = torch.sigmoid(token @ q[0] / math.sqrt(size)) if valid else 0.0
            weighted = gate * token
            scaled = weighted * torch.tanh(linear(w, "image.semantic.scale", weighted))
            rows.append(torch.relu(linear(w, "image.semantic.output", scaled + (q[0] if valid else 0 * q[0]))))
        out.append(torch.stack(rows))
    return out


def spatial(w, tokens, lengths, numbers, training):
    """numbers: list of (H, W) floats, what is read at each pixel."""
    name = "image.spatial"
    tokens = mlp(w, f"{name}.token_mlp", tokens, training)
    maps = []
    for number in numbers:
        height, width = number.shape
        place = positions(height * width, 8).T.reshape(8, height, width)
        channels = torch.cat((number[None], place))[None]
        conv = F.conv2d(channels, w[f"{name}.map_conv.weight"], w[f"{name}.map_conv.bias"], padding=1)
        maps.append(conv[0].flatten(1).T)
    keys = [torch.relu(x) for x in batch_norm(w, f"{name}.map_norm", maps, training)]
    fused = []
    for sample, length, key in zip(tokens, lengths, keys, strict=True):
        rows = []
        for j, token in enumerate(sample):
            attention = torch.softmax(4 * (key @ token) / math.sqrt(len(token)), dim=0)
            rows.append((attention @ key if j < length else 0) + token)
        fused.append(torch.stack(rows))
    return mlp(w, f"{name}.fusion_mlp", fused, training)


def encode_images(w, visual, lengths, numbers, categories, segments, *, training=False):
    """w: state dict in float64. visual (B, K, D), numbers (B, H, W) floats read by the spatial branch -> (B, E)."""
    lengths = [int(n) for n in lengths]
    visual, numbers, segments = (list(x.double()) for x in (visual, numbers, segments))
    projected = [linear(w, "image.token_projection", x) for x in visual]
    category = [concept(w, "image.category_embedding", y.double()) for y in categories]
    cells = [concept(w, "image.segment_embedding", s.flatten(1).T) for s in segments]
    cells = [a + b for a, b in zip(mlp(w, "image.segment_mlp", cells, training), cells, strict=True)]
    sem = semantic(w, projected, lengths, segments, training)
    spa = spatial(w, projected, lengths, numbers, training)
    tokens = [a + b for a, b in zip(mlp(w, "image.token_mlp", visual, training), projected, strict=True)]
    total = [a + b + c for a, b, c in zip(sem, spa, tokens, strict=True)]
    fused = mlp(w, "image.fusion_mlp", total, training)
    sets = [torch.cat((category[i][None], tokens[i][:n], fused[i][:n], cells[i])) for i, n in enumerate(lengths)]
    return torch.stack([normalise(x) for x in pool(w, "image.pool", sets)])


def encode_captions(w, hidden, lengths):
    """hidden: (B, T, H) last hidden states of BERT -> (B, E)."""
    sets = [linear(w, "text.projection", h.double())[: int(n)] for h, n in zip(hidden, lengths, strict=True)]
    return torch.stack([normalise(x) for x in pool(w, "text.pool", sets)])


def triplet_loss(images, captions, margin, hardest, same=None):
    batch = len(images)
    total = 0.0
    for i in range(batch):
        own = images[i] @ captions[i]
        others = [j for j in range(batch) if j != i and not (same is not None and same[i][j])]
        by_caption = [torch.relu(margin + images[i] @ captions[j] - own) for j in others]
        by_image = [torch.relu(margin + images[j] @ captions[i] - own) for j in others]
        for costs in (by_caption, by_image):
            if costs:
                total = total + (torch.stack(costs).max() if hardest else torch.stack(costs).sum())
    return total
