"""The shard plan: every row once, every file owned by one job."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.console import UserError
from stores.plan import MAX_SHARD_ROWS, ShardPlan


@pytest.mark.parametrize("images", [1, 2, 7, 511, 512, 513, 1000, 1024, 1025, 5000])
@pytest.mark.parametrize("shards", [1, 2, 3, 7, 16, 600])
def test_jobs_share_out_all_rows_and_no_file(images, shards):
    plan = ShardPlan(images, shards)
    rows, files = [], []
    for shard in range(shards):
        own = []
        for index, part in plan.zarr_shards(shard):
            files.append(index)
            own += part
            assert 0 < len(part) <= MAX_SHARD_ROWS
            # A row's file follows from its number alone, as in any Zarr array.
            assert {row // plan.shard_rows for row in part} == {index}
        assert own == list(plan.rows(shard))
        rows += own
    assert rows == list(range(images))
    assert files == list(range(plan.zarr_shard_count))


def test_full_size_dataset():
    plan = ShardPlan(123_287, 128)
    assert (plan.shard_rows, plan.zarr_shards_per_job) == (482, 2)
    assert plan.zarr_shard_count * 1 <= 123_287 / 200
    assert plan.rows(127) == range(122_428, 123_287)


def test_more_jobs_than_images_leaves_jobs_without_rows():
    plan = ShardPlan(3, 5)
    assert [len(plan.rows(shard)) for shard in range(5)] == [1, 1, 1, 0, 0]
    assert plan.zarr_shards(4) == []


def test_impossible_plans_are_user_errors():
    with pytest.raises(UserError, match="no images"):
        ShardPlan(0, 2)
    with pytest.raises(UserError, match="at least 1, not 0"):
        ShardPlan(2, 0)
    for shard in (-1, 2):
        with pytest.raises(UserError, match=f"no shard {shard}"):
            ShardPlan(9, 2).rows(shard)


def test_the_plan_costs_a_workflow_no_heavy_import():
    code = "import sys, stores, stores.plan; print([m for m in ('numpy', 'zarr', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
