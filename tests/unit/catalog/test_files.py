"""Which files of a folder are its images, and when they count as changed."""

import os

import pytest

from catalog.files import folder_state, image_files
from core.console import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "b").mkdir(parents=True)
    for name in ("b/2.JPG", "a.png", "b.webp", "b/1.jpeg"):
        (root / name).write_bytes(b"x")
    return root


def found(folder):
    return [os.path.relpath(path, folder) for path in image_files(str(folder))]


def test_images_only_in_an_order_that_does_not_depend_on_the_disk(folder):
    for name in ("notes.txt", "._a.png", ".DS_Store", "jpg"):
        (folder / name).write_bytes(b"x")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "a.png").write_bytes(b"x")
    (folder / "folder.png").mkdir()
    assert found(folder) == ["a.png", "b/1.jpeg", "b/2.JPG", "b.webp"]


def test_what_systems_put_among_photographs_is_none(folder):
    """Network drives keep small pictures and a bin beside the photographs."""
    for name in ("@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg", "b/#recycle/old.jpg", "$RECYCLE.BIN/x.png", "__MACOSX/a.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(b"x")
    assert found(folder) == ["a.png", "b/1.jpeg", "b/2.JPG", "b.webp"]


def test_linked_folders_are_entered_once(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c.png").write_bytes(b"x")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "dead.png").symlink_to(tmp_path / "nowhere")
    assert found(folder) == ["a.png", "b/1.jpeg", "b/2.JPG", "b.webp", "dead.png", "link/c.png"]
    assert folder_state(str(folder)) == folder_state(str(folder))


def test_the_state_changes_with_the_images_and_with_nothing_else(folder):
    states = [folder_state(str(folder))]
    (folder / "notes.txt").write_bytes(b"x")
    (folder / "b" / ".hidden.png").write_bytes(b"x")
    assert folder_state(str(folder)) == states[0]
    (folder / "b" / "3.png").write_bytes(b"x")
    states.append(folder_state(str(folder)))
    (folder / "b" / "3.png").write_bytes(b"xy")
    states.append(folder_state(str(folder)))
    os.utime(folder / "b" / "3.png", ns=(1, 1))
    assert folder_state(str(folder)) == states[-1]
    (folder / "b" / "3.png").write_bytes(b"yx")
    os.utime(folder / "b" / "3.png", ns=(1, 1))
    states.append(folder_state(str(folder)))
    (folder / "b" / "3.png").rename(folder / "b" / "4.png")
    states.append(folder_state(str(folder)))
    (folder / "b" / "4.png").unlink()
    assert len(set(states)) == 5
    assert folder_state(str(folder)) == states[0]


def test_a_folder_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"folder '.*nowhere' cannot be read \(No such file or directory\)"):
        image_files(str(tmp_path / "nowhere"))
