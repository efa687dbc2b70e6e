"""Shared by the tests of what rules need."""

import pytest


@pytest.fixture
def any_checkpoint(monkeypatch):
    """What is in a checkpoint is of no account."""
    monkeypatch.setattr("settings.checks.checkpoint_faults", lambda *_: ())
