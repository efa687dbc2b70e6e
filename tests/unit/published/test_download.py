"""Downloads from servers that drop connections, lie, change their files and send something else."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading

import pytest

from core.console import UserError
from published.download import ATTEMPTS, Digests, fetch, read_lock, record, verify


@pytest.fixture
def get(tmp_path):
    """`get(entry, file)`: fetch into a folder of the test, without waiting between attempts."""

    def call(entry, file, **options):
        options = {"folder": tmp_path / "kept", "lock": tmp_path / "published.lock.json", "pause": 0.0} | options
        return fetch(entry, file, **options)

    return call


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def visible(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def test_a_file_is_fetched_once_and_remembered(server, content, weights, get, tmp_path):
    entry, file = weights()
    path = get(entry, file)
    assert path == tmp_path / "kept" / "some-weights" / "weights.pkl"
    assert path.read_bytes() == content
    assert visible(path.parent) == ["weights.pkl"]
    assert not [*tmp_path.rglob(".*lock"), *tmp_path.rglob("*.tmp")]
    assert json.loads((tmp_path / "published.lock.json").read_text()) == {
        "version": 1,
        "files": {"some-weights/weights.pkl": {"size": len(content), "sha256": sha256(content)}},
    }
    assert get(entry, file) == path
    assert [request["accept-encoding"] for request in server.requests] == ["identity"]


def test_dropped_connections_are_taken_up_where_they_broke(server, content, weights, get):
    server.drop_after = [1_000_000, 100, 2_000_000]
    path = get(*weights())
    assert path.read_bytes() == content
    offsets = [int(request["range"][6:-1]) for request in server.requests[1:]]
    assert offsets == sorted(offsets) and offsets[0] > 900_000 and offsets[-1] > 2_900_000
    assert all(request["if-range"] == '"one"' for request in server.requests[1:])


def test_an_interrupted_download_goes_on_in_the_next_call(server, content, weights, get):
    server.drop_after = [3_000_000] + [0] * 9
    with pytest.raises(UserError, match=rf"{ATTEMPTS} times in a row.*goes on after 2\d{{6}} bytes"):
        get(*weights())
    assert server.answered() == 1 + ATTEMPTS - 1
    server.drop_after = []
    assert get(*weights()).read_bytes() == content
    assert server.requests[-1]["range"].startswith("bytes=2")


def test_progress_starts_the_count_of_attempts_again(server, content, weights, get):
    server.drop_after = [500_000] * 9
    assert get(*weights()).read_bytes() == content
    assert server.answered() > ATTEMPTS


def test_a_server_without_ranges_starts_again_each_time_and_not_for_ever(server, content, weights, get, tmp_path):
    server.ranges, server.drop_after = False, [1_000_000, 4_000_000]
    assert get(*weights()).read_bytes() == content
    server.requests.clear()
    server.drop_after = [1_000_000] * 99
    with pytest.raises(UserError, match="times in a row"):
        get(*weights(), folder=tmp_path / "second")
    assert server.answered() == ATTEMPTS


@pytest.mark.parametrize("if_range", [True, False], ids=["honest", "ignores If-Range"])
def test_a_file_that_changes_between_two_pieces_is_fetched_anew(server, content, weights, get, if_range):
    server.drop_after, server.if_range = [2_000_000] + [0] * 9, if_range
    with pytest.raises(UserError):
        get(*weights())
    server.files["/models/weights.pkl"] = changed = content[::-1]
    server.etag, server.drop_after = '"two"', []
    assert get(*weights()).read_bytes() == changed


def test_without_a_validator_pieces_are_joined_only_where_the_digest_is_known(server, content, weights, get, tmp_path):
    server.etag, server.drop_after = None, [2_000_000]
    assert get(*weights()).read_bytes() == content
    assert "range" not in server.requests[1]
    server.drop_after = [2_000_000]
    get(*weights(sha256=sha256(content)), folder=tmp_path / "second")
    assert server.requests[3]["range"].startswith("bytes=1")


def test_wrong_pieces_are_thrown_away(server, content, weights, get):
    """A server that knows neither If-Range nor validators, changed in between; the digest tells."""
    server.etag, server.drop_after = None, [2_000_000] + [0] * 9
    server.files["/models/weights.pkl"] = content[::-1]
    with pytest.raises(UserError):
        get(*weights(sha256=sha256(content)))
    server.files["/models/weights.pkl"], server.drop_after = content, []
    assert get(*weights(sha256=sha256(content))).read_bytes() == content


def test_wrong_bytes_in_pieces_are_not_fetched_for_ever(server, content, weights, get):
    server.drop_after = [2_000_000] * 99
    with pytest.raises(UserError, match="its sha256 is"):
        get(*weights(sha256=sha256(content[::-1])))
    assert sum("range" not in request for request in server.requests) == 2


def test_a_length_that_is_not_true(server, content, weights, get, tmp_path):
    server.announced = len(content) + 1000
    with pytest.raises(UserError, match=rf"{len(content)} bytes, {len(content) + 1000} before"):
        get(*weights())
    assert visible(tmp_path / "kept" / "some-weights") in ([], ["weights.pkl.part", "weights.pkl.part.json"])
    server.announced = len(content) - 1000
    entry, file = weights(size=len(content))
    with pytest.raises(UserError, match=f"the server has {len(content) - 1000} bytes, .* says {len(content)}"):
        get(entry, file, folder=tmp_path / "second")
    entry, file = weights(sha256=sha256(content))
    with pytest.raises(UserError, match="its sha256 is"):
        get(entry, file, folder=tmp_path / "third")
    assert visible(tmp_path / "third" / "some-weights") == []


def test_no_length_at_all(server, content, weights, get, tmp_path):
    server.chunked, server.drop_after = True, [1_000_000]
    assert get(*weights()).read_bytes() == content
    server.chunked, server.headers = False, {"Content-Length": ""}
    with pytest.raises(UserError, match="does not say how long the file is"):
        get(*weights(), folder=tmp_path / "second", lock=tmp_path / "second.json")
    server.drop_after = [1_000_000]
    path = get(*weights(size=len(content)), folder=tmp_path / "third", lock=tmp_path / "third.json")
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "page"),
    [
        ("text/html; charset=utf-8", b"please sign in"),
        ("application/octet-stream", b"\n<!DOCTYPE html><title>Sign in</title>"),
        ("binary/octet-stream", b"<HTML>"),
    ],
)
def test_a_web_page_is_no_file(server, weights, get, tmp_path, kind, page):
    server.files["/models/weights.pkl"] = page
    server.headers["Content-Type"] = kind
    with pytest.raises(UserError, match="sent a web page instead of the file; download it elsewhere and put it at"):
        get(*weights())
    assert "weights.pkl" not in visible(tmp_path / "kept" / "some-weights")
    assert not (tmp_path / "published.lock.json").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_not_repeated(server, weights, get, status):
    server.statuses = [status] * 9
    entry, file = weights()
    with pytest.raises(UserError) as error:
        get(entry, file)
    message = str(error.value)
    assert message.startswith(f"{file.address}: the server answered {status} ")
    assert "published.mirror" in message and "published.files.some-weights" in message
    assert server.answered() == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_passing_trouble_is_waited_for(server, content, weights, get, status):
    server.statuses = [status] * (ATTEMPTS - 1)
    assert get(*weights()).read_bytes() == content
    server.statuses = [status] * 99
    server.requests.clear()
    with pytest.raises(UserError, match=f"answered {status} .*{ATTEMPTS} times in a row"):
        get(*weights(), folder=get(*weights()).parent / "second")
    assert server.answered() == ATTEMPTS


def test_pauses_double_and_the_server_may_ask_for_its_own(server, weights, get, monkeypatch, tmp_path):
    pauses = []
    monkeypatch.setattr("published.download.time.sleep", pauses.append)
    server.statuses = [500, 500, 500]
    get(*weights(), pause=1.0)
    server.statuses, server.headers["Retry-After"] = [429, 503], "7"
    get(*weights(), pause=1.0, folder=tmp_path / "second")
    server.statuses, server.headers["Retry-After"] = [503], "99999"
    get(*weights(), pause=1.0, folder=tmp_path / "third")
    assert pauses == [1.0, 2.0, 4.0, 7.0, 7.0, 60.0]


def test_416_for_a_complete_part_ends_it_and_for_another_starts_again(server, content, weights, get, tmp_path):
    folder = tmp_path / "kept" / "some-weights"
    entry, file = weights()
    notes = {"address": file.address, "validator": server.etag, "total": len(content)}
    folder.mkdir(parents=True)
    for part in (content, content + b"more"):
        (folder / "weights.pkl.part").write_bytes(part)
        (folder / "weights.pkl.part.json").write_text(json.dumps(notes))
        path = get(entry, file, lock=tmp_path / f"{len(part)}.json")
        assert path.read_bytes() == content
        path.unlink()
    assert [request.get("range") for request in server.requests] == [
        f"bytes={len(content)}-",
        f"bytes={len(content) + 4}-",
        None,
    ]


def test_a_server_that_sends_other_bytes_than_asked(server, content, weights, get):
    server.drop_after, server.shift = [2_000_000], 1000
    assert get(*weights()).read_bytes() == content


def test_redirects_are_followed_with_the_range_and_loops_are_not(server, content, weights, get, tmp_path):
    server.drop_after = [2_000_000]
    assert get(*weights("/moved/models/weights.pkl")).read_bytes() == content
    assert server.requests[-1]["path"] == "/models/weights.pkl" and "range" in server.requests[-1]
    with pytest.raises(UserError, match="redirects"):
        get(*weights("/loop"), folder=tmp_path / "second")


def test_a_silent_server(server, weights, get):
    server.stall = 5.0
    with pytest.raises(UserError, match="times in a row"):
        get(*weights(), timeout=(0.2, 0.05))


def test_nobody_there(weights, get):
    entry, file = weights()
    with pytest.raises(UserError, match=r"127\.0\.0\.1.*refused.*times in a row"):
        get(entry, file, mirror="http://127.0.0.1:1/x")
    with pytest.raises(UserError, match="download it elsewhere"):
        get(entry, file, mirror="gopher://example.org")


def test_a_changed_file_on_the_server_is_refused_until_accepted(server, content, weights, get, tmp_path):
    entry, file = weights()
    path = get(entry, file)
    path.unlink()
    server.files["/models/weights.pkl"] = changed = bytes(len(content))
    lock = tmp_path / "published.lock.json"
    command = f"python -m published fetch some-weights --accept --folder {tmp_path / 'kept'} --lock {lock}"
    with pytest.raises(UserError) as error:
        get(entry, file)
    message = str(error.value)
    assert message.startswith(f"{file.address} is not the file that some-weights is: its sha256 is {sha256(changed)}, ")
    assert f"{lock} says {sha256(content)}" in message and command in message
    assert visible(path.parent) == []
    server.files["/models/weights.pkl"] = b"shorter"
    with pytest.raises(UserError, match=f"the server has 7 bytes, .*published.lock.json says {len(content)}"):
        get(entry, file)
    assert read_lock(lock)["some-weights/weights.pkl"]["sha256"] == sha256(content)
    assert get(entry, file, accept=True).read_bytes() == b"shorter"
    assert read_lock(lock)["some-weights/weights.pkl"] == {"size": 7, "sha256": sha256(b"shorter")}
    assert verify(entry, file, folder=tmp_path / "kept", lock=lock).size == 7


def test_a_changed_file_on_disk_is_refused_until_accepted(server, content, weights, get, tmp_path):
    entry, file = weights()
    path, lock = get(entry, file), tmp_path / "published.lock.json"
    assert verify(entry, file, folder=tmp_path / "kept", lock=lock).sha256 == sha256(content)
    changed = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes(changed)
    for refuse in (get, lambda *which: verify(*which, folder=tmp_path / "kept", lock=lock)):
        with pytest.raises(UserError) as error:
            refuse(entry, file)
        assert str(error.value).startswith(
            f"{path} is not the file that some-weights is: its sha256 is {sha256(changed)}"
        )
        assert "remove it and fetch it again, or accept it: python -m published fetch" in str(error.value)
    get(entry, file, accept=True)
    assert verify(entry, file, folder=tmp_path / "kept", lock=lock).sha256 == sha256(changed)
    assert server.answered() == 1


def test_what_the_publisher_says_wins_over_the_lock_and_cannot_be_overruled(server, content, weights, get, tmp_path):
    lock = tmp_path / "published.lock.json"
    seen = {"size": 3, "sha256": sha256(b"old")}
    lock.write_text(json.dumps({"version": 1, "files": {"some-weights/weights.pkl": seen}}))
    entry, file = weights(size=len(content), sha256=sha256(content))
    path = get(entry, file)
    assert read_lock(lock)["some-weights/weights.pkl"]["sha256"] == sha256(content)
    path.unlink()
    server.files["/models/weights.pkl"] = bytes(len(content))
    for accept in (False, True):
        with pytest.raises(UserError, match="the registry of published weights says.*or use your own file") as error:
            get(entry, file, accept=accept)
        assert "--accept" not in str(error.value)


def test_the_md5_in_a_files_name(content, weights, get, tmp_path):
    prefix = hashlib.md5(content).hexdigest()[:6]
    assert get(*weights(md5_prefix=prefix)).read_bytes() == content
    with pytest.raises(
        UserError, match=f"its md5 is {prefix}.*, not 00face... as its name says; .* or use your own file"
    ):
        get(*weights(md5_prefix="00face"), folder=tmp_path / "second", accept=True)


def test_verification_reads_a_file_only_once(content, weights, get, tmp_path, monkeypatch):
    entry, file = weights()
    place = {"folder": tmp_path / "kept", "lock": tmp_path / "published.lock.json"}
    assert verify(entry, file, **place) is None
    path = get(entry, file)
    monkeypatch.setattr("published.download._digest", lambda path: pytest.fail("read again"))
    assert verify(entry, file, **place).sha256 == sha256(content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(pytest.fail.Exception):
        verify(entry, file, **place)


def test_share_pages_say_what_to_do_and_a_mirror_helps(server, content, weights, get, tmp_path):
    entry, file = weights(path=None)
    with pytest.raises(UserError) as error:
        get(entry, file)
    path = tmp_path / "kept" / "some-weights" / "weights.pkl"
    assert f"download it by hand (https://example.org) and put it at {path}" in str(error.value)
    server.files["/all/some-weights/weights.pkl"] = content
    assert get(entry, file, mirror=f"{server.address}/all/") == path
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="remove it"):
        get(entry, file)


def test_a_mirror_has_the_same_paths(server, content, weights, get):
    server.files = {"/copies/models/weights.pkl": content}
    assert get(*weights(), mirror=f"{server.address}/copies").read_bytes() == content


def test_a_folder_of_somebody_else_is_read_and_locked(weights, get, tmp_path, monkeypatch):
    entry, file = weights()
    path, lock = get(entry, file), tmp_path / "other" / "published.lock.json"
    os.utime(path, ns=(1, 1))

    def refuse(path, digests):
        raise PermissionError

    monkeypatch.setattr("published.download._remember_digests", refuse)
    digests = verify(entry, file, folder=tmp_path / "kept", lock=lock)
    assert not lock.exists()
    record(entry, file, digests, lock=lock)
    assert read_lock(lock) == read_lock(tmp_path / "published.lock.json")


def test_many_writers_of_one_lock_file_lose_nothing(weights, tmp_path):
    entry, file = weights()
    files = [dataclasses.replace(file, name=f"{i}.pkl") for i in range(40)]
    lock = tmp_path / "published.lock.json"
    threads = [
        threading.Thread(target=record, args=(entry, f, Digests(1, "a", "b")), kwargs={"lock": lock}) for f in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_lock(lock)) == 40 and os.listdir(tmp_path) == [lock.name]


def test_pieces_of_two_mirrors_are_not_joined(server, content, weights, get):
    server.files["/other/models/weights.pkl"] = content[::-1]
    server.drop_after = [2_000_000] + [0] * 9
    with pytest.raises(UserError):
        get(*weights())
    server.drop_after = []
    assert get(*weights(), mirror=f"{server.address}/other").read_bytes() == content[::-1]


def test_a_lock_file_that_is_none(weights, get, tmp_path):
    for text in ("{", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": 1}}'):
        (tmp_path / "published.lock.json").write_text(text)
        with pytest.raises(UserError, match="published.lock.json: is no lock file of published weights"):
            get(*weights())


def test_a_folder_that_cannot_be_written(weights, get, tmp_path):
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(UserError, match="cannot be written .*published.folder"):
        get(*weights())


def test_no_room_on_the_disk(server, content, weights, get, monkeypatch):
    import errno

    def full(response, file, size, label):
        file.write(next(response.iter_content(1000)))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("published.download._copy", full)
        with pytest.raises(UserError, match="No space left on device.*make room"):
            get(*weights())
    assert get(*weights()).read_bytes() == content
    assert server.requests[-1]["range"] == "bytes=1000-"


def test_threads_that_ask_for_one_file_fetch_it_once(server, content, weights, get):
    server.stall = 0.2
    entry, file = weights()
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(get(entry, file))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4 and paths[0].read_bytes() == content
    assert server.answered() == 1


def test_processes_that_ask_for_one_file_fetch_it_once(server, content, weights, get, tmp_path, repository):
    server.stall = 2
    entry, file = weights()
    program = (
        "import sys; from published.download import fetch; from published.registry import Entry, File;"
        f"fetch({entry!r}, {file!r}, folder=sys.argv[1], lock=sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "kept"), str(tmp_path / "published.lock.json")]
    processes = [subprocess.Popen(command, cwd=repository, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert server.answered() == 1
    assert sum("another process is fetching it; waiting" in error for error in errors) == 2
    assert (tmp_path / "kept" / "some-weights" / "weights.pkl").read_bytes() == content


def test_a_killed_download_leaves_no_file_and_goes_on(server, content, weights, get, tmp_path, repository):
    entry, file = weights()
    server.stall = 1.5
    program = (
        "import sys; from published.download import fetch; from published.registry import Entry, File;"
        f"fetch({entry!r}, {file!r}, folder=sys.argv[1], lock=sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "kept"), str(tmp_path / "published.lock.json")]
    process = subprocess.Popen(command, cwd=repository, stderr=subprocess.DEVNULL)
    part = tmp_path / "kept" / "some-weights" / "weights.pkl.part"
    while not (part.exists() and part.stat().st_size > 1_000_000):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert "weights.pkl" not in visible(part.parent)
    server.stall = 0.0
    assert get(entry, file).read_bytes() == content
    assert int(server.requests[-1]["range"][6:-1]) > 1_000_000
