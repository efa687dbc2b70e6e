"""A run that somebody put into a bucket is told from one that the workflow made, as in a folder."""

import json

import pytest

from core.console import UserError
from core.layout import CONFIG, HISTORY, WEIGHTS
from model.runs import imported_by_hand, read_config
from stores.places import place_of


def test_an_imported_run_is_known(make_bucket):
    address = f"{make_bucket()}/lab/runs/paper"
    assert not imported_by_hand(address), "there is nothing yet"
    with pytest.raises(UserError, match="paper is not a run folder: cannot read .*config.json"):
        read_config(address)
    for source, kept in (
        ({"imported": "x.pth"}, True),
        ({"imported": "x.pth", "by_workflow": True}, False),
        (None, False),
    ):
        config = {"format_version": 2, "kind": "scan", "source": source}
        place_of(address).write(CONFIG, json.dumps(config).encode())
        assert imported_by_hand(address) == kept and read_config(address) == config
    place_of(address).write(WEIGHTS, b"a colleague's")
    assert imported_by_hand(address), "a training writes its history first"
    place_of(address).write(HISTORY, b"epoch")
    assert not imported_by_hand(address)
