"""Shared by the unit tests: a browser, and a folder to work in."""

import os
from pathlib import Path

import pytest

from tests.unit.browsing import start


@pytest.fixture(scope="session")
def browser():
    driver = start()
    yield driver
    driver.quit()


@pytest.fixture
def shot(browser, tmp_path):
    """`shot(name)` keeps a picture of what is seen."""
    folder = Path(os.environ.get("THREESHNET_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: browser.save_screenshot(str(folder / f"{name}.png"))


@pytest.fixture
def working_folder(tmp_path, monkeypatch, repository):
    """A new folder to be in, as Snakemake is started from one, with the embedded weights in their place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(repository / "weights")
    return tmp_path
