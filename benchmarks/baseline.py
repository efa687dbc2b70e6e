"""The original 3SHNet procedure, plainly: what every ratio in `benchmarks` is measured against.

Written from what the authors' code does (XuriGe1995/3SHNet), step for step and in its order: the GRU of the pooling runs
once per sample, the class map and its position encoding go through a real convolution and batch norm, attention
materialises its scores, valid tokens are packed to the front image by image with slice assignments, features are float32
arrays in host memory that a `DataLoader` collates item by item, evaluation encodes the image of each of its five captions
anew, and ranks come from sorting the similarities row by row. No mixed precision, no fused optimiser or attention.

It works on the parameters of one of our networks, so both sides compute the same embeddings from the same weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, Dataset

from model.layers import l2_normalise, sinusoidal_positions
from model.library_encoder import LibraryEncoder, attending, padded_states
from model.pooling import GeneralizedPooling
from model.three_shnet import ThreeSHNet
from model.tokenizer import CaptionTokenizer

FAR = -10000.0  # what the original gives to padding, before sorting and before the softmax


class Baseline(nn.Module):
    """The original's forward pass over the weights of `network`, which it shares."""

    def __init__(self, network: ThreeSHNet) -> None:
        super().__init__()
        self.image, self.text = network.image, network.text

    def encode_images(
        self, visual: Tensor, lengths: Tensor, seg_maps: Tensor, category_onehots: Tensor, seg_features: Tensor
    ) -> Tensor:
        """(B, E), normalised. All arguments are float32, on the network's device; `seg_maps` holds the numbers read.

        Like the original it needs items not much shorter than the longest: 2 n + 49 >= K for each.
        """
        encoder = self.image
        projected = encoder.token_projection(visual)
        category = encoder.category_embedding(category_onehots)
        cells = encoder.segment_embedding(seg_features.flatten(2).permute(0, 2, 1))
        semantic = self._semantic(projected, seg_features, lengths)
        spatial = self._spatial(projected, seg_maps, lengths)
        tokens = encoder.token_mlp(visual) + projected
        cells = encoder.segment_mlp(cells) + cells
        fused = encoder.fusion_mlp(semantic + spatial + tokens)

        packed = torch.cat((tokens, fused, cells), dim=1)
        longest, count = int(lengths.max()), cells.shape[1]
        for i in range(len(lengths)):
            n = int(lengths[i])
            # Padding last: first that of the tokens, then that of the fused tokens; then what counts, to the front.
            packed[i, 2 * n + count : n + longest + count] = packed[i, n:longest]
            packed[i, n + longest + count :] = fused[i, n:longest]
            packed[i, n : 2 * n] = fused[i, :n]
            packed[i, 2 * n : 2 * n + count] = cells[i]
        packed = torch.cat((category[:, None], packed), dim=1)
        return l2_normalise(pool(encoder.pool, packed, 2 * lengths + count + 1))

    def encode_captions(self, token_ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, E), normalised. `token_ids` (B, T) int64 padded with 0, `lengths` (B,), on the network's device."""
        states = self.text.projection(bert_states(self.text.bert, token_ids))
        return l2_normalise(pool(self.text.pool, states, lengths))

    def _semantic(self, tokens: Tensor, seg_features: Tensor, lengths: Tensor) -> Tensor:
        branch = self.image.semantic
        tokens = branch.token_mlp(tokens) + tokens
        query = branch.query_embedding(F.avg_pool2d(seg_features, seg_features.shape[-1]).flatten(1))[:, None]
        query = branch.query_mlp(query) + query
        valid = within(lengths, tokens.shape[1])
        scores = (tokens @ query.transpose(1, 2) / math.sqrt(tokens.shape[2])).flatten(1)
        weighted = torch.sigmoid(scores.masked_fill(~valid, -math.inf))[:, :, None] * tokens
        repeated = query.repeat(1, tokens.shape[1], 1) * valid[:, :, None]
        return torch.relu(branch.output(weighted * torch.tanh(branch.scale(weighted)) + repeated))

    def _spatial(self, tokens: Tensor, seg_maps: Tensor, lengths: Tensor) -> Tensor:
        branch = self.image.spatial
        batch, height, width = seg_maps.shape
        positions = sinusoidal_positions(height * width, branch.map_conv.in_channels - 1)
        tokens = branch.token_mlp(tokens)
        positions = positions.repeat(batch, 1, 1).to(tokens.device)
        channels = torch.cat((seg_maps.view(batch, -1, 1), positions), dim=2)
        channels = channels.view(batch, height, width, -1).permute(0, 3, 1, 2)
        keys = torch.relu(branch.map_norm(branch.map_conv(channels))).flatten(2)
        attention = torch.softmax(tokens @ keys / math.sqrt(tokens.shape[2]) * 4.0, dim=2)
        context = attention @ keys.transpose(1, 2)
        return branch.fusion_mlp(context * within(lengths, tokens.shape[1])[:, :, None] + tokens)


def within(lengths: Tensor, longest: int) -> Tensor:
    """(B, longest) bool: the first `lengths` of each row."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def pool(module: GeneralizedPooling, inputs: Tensor, lengths: Tensor) -> Tensor:
    """Generalised pooling with a row of the GRU for every sample: inputs (B, L, E), the first lengths[i] valid."""
    longest = int(lengths.max())
    valid = within(lengths, longest)[:, :, None]
    positions = sinusoidal_positions(longest, module.position_size)
    positions = positions.repeat(len(lengths), 1, 1).to(inputs.device).masked_fill(~valid, 0)
    packed = pack_padded_sequence(positions, lengths.cpu(), batch_first=True, enforce_sorted=False)
    states = pad_packed_sequence(module.gru(packed)[0], batch_first=True)[0]
    half = states.shape[2] // 2
    scores = module.score((states[:, :, :half] + states[:, :, half:]) / 2)
    scores[torch.where(~valid)] = FAR
    weights = torch.softmax(scores / 0.1, dim=1)
    ordered = inputs[:, :longest].masked_fill(~valid, FAR).sort(dim=1, descending=True)[0].masked_fill(~valid, 0)
    return (ordered * weights).sum(dim=1)


def bert_states(bert: LibraryEncoder, token_ids: Tensor) -> Tensor:
    """Last hidden states (B, T, H) of all tokens, padding included, by the library with the attention written out."""
    with attending(bert.model, "eager"):
        return padded_states(bert.model, token_ids, token_ids != 0)


class PairsInMemory(Dataset):
    """The original's dataset: float32 arrays in host memory, one (image, caption) pair per item, five captions an image.

    Args:
        arrays: `features` (N, K, D), `seg_maps`, `category_onehots` and `seg_features`, all float32.
        captions: 5 N strings, grouped by image. train: with both augmentations.
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], captions: Sequence[str], tokenizer: CaptionTokenizer, *, train: bool
    ) -> None:
        self.arrays, self.captions, self.tokenizer, self.train = arrays, captions, tokenizer, train
        self.per_image = len(captions) // len(arrays["features"])

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index: int):
        image = index // self.per_image
        tokens = torch.tensor(self._token_ids(self.captions[index]))
        visual = self.arrays["features"][image]
        if self.train:
            visual = visual[np.where(np.random.rand(len(visual)) > 0.2)]
        others = (torch.Tensor(self.arrays[name][image]) for name in ("seg_maps", "category_onehots", "seg_features"))
        return torch.Tensor(visual), *others, tokens, index

    def _token_ids(self, caption: str) -> list[int]:
        """Word by word: in training a fifth of the words are masked, replaced or removed."""
        pieces = self.tokenizer.split([caption])
        ids = []
        words = pieces.words.tolist()
        token_ids = pieces.ids.tolist()
        for word in sorted(set(words)):
            own = [token for token, at in zip(token_ids, words, strict=True) if at == word]
            draw = random.random() / 0.2 if self.train else 1.0
            if draw < 0.5:
                own = [self.tokenizer.mask] * len(own)
            elif draw < 0.6:
                own = [int(random.choice(self.tokenizer.ordinary)) for _ in own]
            elif draw < 1.0:
                own = []
            ids += own
        return [self.tokenizer.start, *ids, self.tokenizer.end]


def collate(items: list) -> tuple[Tensor, ...]:
    """Items -> (visual, lengths, seg_maps, category_onehots, seg_features, token_ids, token_lengths, indices)."""
    visual, maps, onehots, segments, tokens, indices = zip(*items, strict=True)
    lengths, token_lengths = [len(item) for item in visual], [len(item) for item in tokens]
    all_visual = torch.zeros(len(items), max(lengths), visual[0].shape[1])
    all_tokens = torch.zeros(len(items), max(token_lengths), dtype=torch.int64)
    for i, (item, words) in enumerate(zip(visual, tokens, strict=True)):
        all_visual[i, : lengths[i]] = item
        all_tokens[i, : token_lengths[i]] = words
    stacked = (torch.stack(part) for part in (maps, onehots, segments))
    return all_visual, torch.Tensor(lengths), *stacked, all_tokens, torch.Tensor(token_lengths), torch.tensor(indices)


def loader(pairs: PairsInMemory, batch_size: int, *, workers: int = 0) -> DataLoader:
    """Shuffled and without the last, incomplete batch in training; in order otherwise."""
    return DataLoader(
        pairs,
        batch_size,
        shuffle=pairs.train,
        drop_last=pairs.train,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


@torch.no_grad()
def encode(network: Baseline, batches: DataLoader, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Image and caption embeddings, (5N, E) float64 each: every image once per caption."""
    images = captions = None
    for batch in batches:
        *inputs, tokens, token_lengths, indices = (part.to(device) for part in batch)
        image_emb = network.encode_images(*inputs)
        caption_emb = network.encode_captions(tokens, token_lengths)
        if images is None or captions is None:
            images, captions = (np.zeros((len(batches.dataset), e.shape[1])) for e in (image_emb, caption_emb))
        at = indices.cpu().numpy()
        images[at], captions[at] = image_emb.cpu().numpy(), caption_emb.cpu().numpy()
    return images, captions


def similarities(images: np.ndarray, captions: np.ndarray) -> np.ndarray:
    """(N, M), in the precision of the embeddings: float64 as `encode` leaves them."""
    return images @ captions.T


def metrics(similarity: np.ndarray) -> dict:
    """Recalls and ranks by sorting each row and column of (N, 5N) similarities; captions grouped by image."""
    images, captions = similarity.shape
    per_image = captions // images
    to_caption, to_image = np.zeros(images), np.zeros(captions)
    for image in range(images):
        order = np.argsort(similarity[image])[::-1]
        own = range(per_image * image, per_image * (image + 1))
        to_caption[image] = min(np.where(order == caption)[0][0] for caption in own)
    by_caption = similarity.T
    for caption in range(captions):
        order = np.argsort(by_caption[caption])[::-1]
        to_image[caption] = np.where(order == caption // per_image)[0][0]
    result = {
        way: {
            **{f"r{k}": 100.0 * len(np.where(ranks < k)[0]) / len(ranks) for k in (1, 5, 10)},
            "medr": float(np.floor(np.median(ranks)) + 1),
            "meanr": float(ranks.mean() + 1),
        }
        for way, ranks in (("i2t", to_caption), ("t2i", to_image))
    }
    return result | {"rsum": sum(result[way][f"r{k}"] for way in result for k in (1, 5, 10))}
