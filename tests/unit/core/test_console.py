"""Atomic files, digests, errors and progress."""

import gc
import hashlib
import io
import os
import subprocess
import sys

import pytest

from core.console import UserError, _leave_objects, progress, run_cli
from core.files import atomic_path, digest_file, digest_json, keys_given_twice, parse_json, read_mapping, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["value.json"]


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not os.listdir(tmp_path)


def test_files_follow_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        write_json(tmp_path / "x.json", 1)
    finally:
        os.umask(old)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o644


def test_digests(tmp_path):
    (tmp_path / "x").write_bytes(b"hello")
    assert digest_file(tmp_path / "x") == hashlib.sha256(b"hello").hexdigest()
    assert digest_json({"a": 1, "b": [1.5, None]}) == digest_json({"b": [1.5, None], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})


def test_user_errors_are_shown_without_a_traceback(capsys):
    def fail() -> None:
        raise UserError("the folder is missing; create it")

    with pytest.raises(SystemExit) as stop:
        run_cli(fail)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: the folder is missing; create it\n"


def test_an_interrupt_shows_no_traceback(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_cli(main)
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("where", ["", "file/why.json", "x" * 300])
def test_a_path_that_cannot_be_written_is_named_without_a_traceback(tmp_path, capsys, where):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: write_json(tmp_path / where, 1))
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith(
        f"error: {(tmp_path / where).parent if '/' in where else tmp_path / where} "
    )
    assert "cannot be read or written" in line and "give another path" in line


def test_what_is_no_path_of_anybody_s_keeps_its_traceback():
    def fail():
        raise PermissionError(1, "Operation not permitted")

    with pytest.raises(PermissionError):
        run_cli(fail)


def test_who_stops_reading_ends_a_command_quietly(capfd):
    """As `| head -1` does."""
    code = "from core.console import run_cli\nrun_cli(lambda: [print('x' * 1000) for _ in range(1000)])"
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.readline()
    command.stdout.close()
    assert command.stderr.read() == b"" and command.wait() == 1


def test_progress_in_a_log_is_whole_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress(range(3), total=3, desc="shard", unit="image")) == [0, 1, 2]
    text = log.getvalue()
    assert "\r" not in text and "100%" in text and text.endswith("\n")


def test_mappings_come_inline_or_from_files(tmp_path):
    (tmp_path / "c.yaml").write_text("a: 1\n")
    assert read_mapping('{"a": 1}', flag="--config") == {"a": 1}
    assert read_mapping(str(tmp_path / "c.yaml"), flag="--config") == {"a": 1}
    with pytest.raises(UserError, match="--config"):
        read_mapping(str(tmp_path / "missing.yaml"), flag="--config")


def test_a_key_that_stands_twice(tmp_path):
    (tmp_path / "c.json").write_text('{"a": {"b": 1,\n"b": 2}}')
    with pytest.raises(UserError, match=r"a\.b: stands twice in --config .*c\.json, lines 1 and 2; keep one"):
        read_mapping(str(tmp_path / "c.json"), flag="--config")
    assert keys_given_twice("yes: 1\ntrue: 2\n'yes': 3\n", "c.yaml") == [
        "true: stands twice in c.yaml, lines 1 and 2; keep one, or rename it"
    ]
    tabs = '{\n\t"a": [{"b": 1, "b": 2}],\n\t"c": 3\n}'  # as JSON is often indented
    merged = "a: &a {b: 1}\nc:\n  <<: *a\n  <<: {d: 2}\n"
    assert [line.split(":")[0] for text in (tabs, merged) for line in keys_given_twice(text, "c")] == ["a.b", "c.<<"]
    with pytest.raises(UserError, match="a: stands twice in --settings, line 1"):
        read_mapping('{"a": 1, "a": 2}', flag="--settings")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        ("[" * 100_000, "nested too deep"),
        ('{"a": ' + "9" * 5000 + "}", "a number of thousands of digits"),
        ("{'a': 1}", "Expecting property name"),
    ],
    ids=["twice", "deep", "digits", "no JSON"],
)
def test_json_of_others(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
    assert parse_json('{"a": [1, {"a": null}]}') == {"a": [1, {"a": None}]}


def test_objects_are_left_at_the_end_but_for_bindings_that_would_call_them_leaks(monkeypatch):
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    try:
        _leave_objects()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    monkeypatch.setitem(sys.modules, "triton", sys)
    _leave_objects()
    assert gc.get_freeze_count() == 0
