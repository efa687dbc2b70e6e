"""What a user gave, before it is checked: files that are no configuration, numbers that are others than they look like."""

import pytest

from core.console import UserError
from settings import check_readable, load_settings
from settings.given import odd_numbers, typed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\n---\na: 2\n", "line 3: a second document begins above"),
        (b"a:\n\tb: 1\n", "line 2: found character .* by blanks, not by tabs"),
        (b"a: {b: 1\n", "line 2: expected ',' or '}'"),
        (b"a: 1\n# caf\xe9\n", "line 2: byte 0xe9 is not UTF-8; .*iconv -f latin1"),
        ("a: 1\n".encode("utf-16"), "iconv -f utf-16"),
        (b"- a\n", "holds no keys and values"),
        (b"", "holds no keys and values"),
        (b"1", "holds no keys and values"),
        (b"[" * 100_000, "is nested too deep"),
        (b"<!DOCTYPE html>", "is a web page that was saved"),
        (b"a: 1\nb: &b\n  c: [2, *b]\n", "line 2: an alias .* stands within what it stands for"),
        (b"\xef\xbb\xbfa: &a {b: 1}\nc: *a\nd: [*a, *a]\n", None),
        (b'{\n\t"a": 1\n}', None),
    ],
    ids="documents tabs unclosed latin1 utf-16 list empty number deep page loop mark-and-anchor JSON".split(),
)
def test_files_that_are_no_configuration(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    if message is None:
        check_readable(path)
        return
    with pytest.raises(UserError, match=message):
        check_readable(path)


def test_numbers_that_are_others_than_they_look_like(config, tmp_path):
    """YAML 1.1, as Snakemake reads it, counts `010` by eights and `1:30` in sixtieths."""
    text = "seed: 010\na: {b: [1:30, -0_7], 0o: 08, c: '010', d: 0x10, e: 1_000, f: 0.10, g: 0, h: 2014-01-02, i: 12:30:45.5}\n"
    path = tmp_path / "c.yaml"
    path.write_text(text)
    found = odd_numbers(text, "c.yaml")
    assert [line.partition(";")[0] for line in found] == [
        "c.yaml, line 1: 010 is 8 to YAML",
        "c.yaml, line 2: 1:30 is 90 to YAML",
        "c.yaml, line 2: -0_7 is -7 to YAML",
        "c.yaml, line 2: 12:30:45.5 is 45045.5 to YAML",
    ]
    with pytest.raises(UserError, match=r"c.yaml, line 1: 010 is 8 to YAML; write the number that is meant"):
        load_settings(config, check_files=False, files=[path])
    # On the command line, where nothing has a type, they are decimal.
    values = {"a": "010", "b": ["-007", "0", "00", "0x10", "01.50"], "c": "1:30"}
    assert typed(values) == {"a": 10, "b": [-7, 0, 0, 16, 1.5], "c": "1:30"}


@pytest.mark.parametrize("section", ["datasets", "runs", "testsets", "search"])
def test_names_that_are_one_on_many_systems(config, section):
    name = next(iter(config[section]))
    config[section][name.upper()] = config[section][name]
    with pytest.raises(UserError, match=f"{section}.{name.upper()}: differs from '{name}' in capitals alone"):
        load_settings(config, check_files=False)


def test_names_of_the_workflows_own_folders(config):
    config["datasets"]["Runs"] = config["datasets"]["scenes"]
    with pytest.raises(UserError, match=r"datasets.Runs: the workflow has a folder of this name"):
        load_settings(config, check_files=False)


@pytest.mark.parametrize(
    ("images", "results", "fine"),
    [
        ("data", "data/results", False),
        (".", "results", False),
        ("results", "results", False),
        ("data", "linked/results", False),
        ("{}/data", "data/x", False),
        ("data", "results", True),
        ("data", "data2/results", True),
        ("results/photos", "results", True),
        ("data.zip", "data/results", True),
        ("data", "s3://data/results", True),
    ],
)
def test_results_that_would_count_as_images(config, tmp_path, monkeypatch, images, results, fine):
    """A search, for one, makes small pictures in them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "linked").symlink_to("data")
    config["datasets"]["mine"] = {"source": "folder", "images": images.format(tmp_path)}
    if fine:
        assert load_settings(config | {"results": results}, check_files=False).datasets["mine"]
        return
    with pytest.raises(
        UserError, match=r"datasets.mine.images: .* holds the results folder .*, where pictures are made"
    ):
        load_settings(config | {"results": results}, check_files=False)


@pytest.mark.parametrize(("value", "fine"), [(2**63 - 1, True), (2**63, False)])
def test_a_seed_is_one_that_torch_takes(config, value, fine):
    config["seed"] = value
    if fine:
        assert load_settings(config, check_files=False).seed == value
        return
    with pytest.raises(UserError, match="seed: 9223372036854775808 - should be less than"):
        load_settings(config, check_files=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"val": "dev", "test": "dev"}, "export.names: 'dev' would be the files of 2 splits"),
        (
            {"val": "train"},
            "export.names.val: 'train' is another split of dataset 'scenes', and both would be the same files",
        ),
        ({"val": "test", "test": "val"}, None),
        ({"val": "val", "other": "train2"}, None),
    ],
)
def test_an_export_gives_each_split_its_own_files(config, names, message):
    config["export"] = {"names": names}
    if message is None:
        assert load_settings(config, check_files=False).export.names == names
        return
    with pytest.raises(UserError, match=message):
        load_settings(config, check_files=False)
