"""UPSNet's networks made narrow, with seeded weights."""

import torch

from benchmarks.detectors import seed_weights
from extractors.images import InputSpec
from extractors.networks import build

MEAN = (102.9801, 115.9465, 122.7717)
INPUT = InputSpec(160, 260, "BGR", MEAN, (1.0, 1.0, 1.0), 32, "float")
NARROW = {
    "input": INPUT,
    "blocks": (1, 1, 2, 1),
    "stem_channels": 16,
    "res2_channels": 64,
    "width_per_group": 16,
    "fpn_channels": 32,
    "box_hidden": 64,
    "mask_channels": 32,
    "semantic_channels": (32, 16, 16),
    "stuff_area_limit": 256,
    "post_nms_top": 300,
}


def narrow(architecture="upsnet_r101_dcn", **options):
    network = build(architecture, **(NARROW | options))
    seed_weights(network)
    with torch.no_grad():
        network.sem_seg_head.predictor.bias[: network.num_stuff] -= 1.0  # or stuff would swallow most instances
    return network
