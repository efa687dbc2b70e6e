"""Small networks for tests, made as `model.build` makes them."""

from __future__ import annotations

import numpy as np
import torch

from model.build import new_image_encoder, new_network
from model.data import Features, TrainingPairs, read_split
from model.runs import load_run
from model.settings import Recipe, Text, ThreeSHNetModel, Training
from model.small_encoder import SmallEncoder
from model.text import TextEncoder
from model.three_shnet import ImageEncoder, ThreeSHNet
from model.training.loop import step, train


def image_encoder(
    img_dim: int, embed_size: int = 1024, spatial_size: int = 128, *, num_categories: int = 133, **sizes
) -> ImageEncoder:
    """3SHNet's image side; what is not given is the paper's."""
    model = ThreeSHNetModel(embed_size=embed_size, spatial_size=spatial_size, **sizes)
    return new_image_encoder(ThreeSHNet, model, img_dim=img_dim, num_categories=num_categories)


def text_encoder(
    bert: SmallEncoder, embed_size: int = 1024, *, pool_position_size: int = 32, pool_hidden_size: int = 32
) -> TextEncoder:
    return TextEncoder(bert, embed_size, pool_position_size=pool_position_size, pool_hidden_size=pool_hidden_size)


def prepare(world, *, seed=0, dropout=0.1, **options):
    """A network and training pairs of a small world; `options` of the pairs."""
    split = read_split(world.images, world.captions, "train")
    features = Features(world.visual, world.panoptic, index_digest=world.digest)
    torch.manual_seed(seed)
    recipe = Recipe(
        model=ThreeSHNetModel(embed_size=16, spatial_size=4, pool_position_size=4, pool_hidden_size=4, dropout=dropout),
        text=Text(
            pretrained=None, layers=1, hidden_size=16, heads=2, intermediate_size=32, vocabulary_size=100,
            min_frequency=1, dropout=dropout, max_tokens=16,
        ),
    )  # fmt: skip
    network, tokenizer = new_network(
        recipe, split.captions, img_dim=features.img_dim, num_categories=features.num_categories
    )
    return network, TrainingPairs(split, features, tokenizer, seed=seed, **({"batch_size": 24} | options))


def small_recipe(**numbers) -> Training:
    """Three epochs at a rate that suits the small world; `numbers` of the recipe."""
    given = {"epochs": 3, "learning_rate": 3e-3, "text_lr_factor": 1.0, "save_every": 2, "workers": 0}
    return Training(**(given | numbers))


def run(
    world,
    folder,
    *,
    validate=True,
    seed=0,
    batch_size=24,
    prepared=None,
    name="run",
    stop_after=None,
    contents="",
    **numbers,
):
    """Train on a small world into `folder`; `numbers` of the recipe."""
    network, pairs = prepared or prepare(world, seed=seed, batch_size=batch_size)
    validation = read_split(world.images, world.captions, "val") if validate else None
    return train(
        network, pairs, small_recipe(**numbers), output=folder / "run", state=folder / "state", run=name,
        validation=validation, seed=seed, device="cpu", stop_after=stop_after, contents=contents,
    )  # fmt: skip


def one_step(network, pairs, optimizer=None, *, hardest=False, **numbers):
    """The loss of one step on the first batch; nothing moves unless there is an optimiser."""
    optimizer = optimizer or torch.optim.SGD(network.parameters(), lr=0.0)
    return step(network, network, optimizer, pairs.batch(0, 0), small_recipe(**numbers), hardest=hardest)


def weights(folder):
    """Those of the run in `folder`."""
    return load_run(folder / "run")[0].state_dict()


def equal(a, b):
    """Whether two sets of weights are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def write_store(path, store, version):
    """A sealed store on disk, with the arrays and attributes of one in memory."""
    import zarr

    group = zarr.create_group(str(path), attributes={"schema_version": version, "dropped": [], **store.attributes})
    for name, values in store.arrays.items():
        group.create_array(name, data=values)
    ids = group.create_array("image_ids", shape=(len(store),), dtype=str)
    ids[:] = np.asarray(store.image_ids, dtype=np.dtypes.StringDType())
