"""The page, asked without a browser: what it shows, what it refuses, and that nothing gets through unescaped."""

from __future__ import annotations

import io
import re
import shutil
import socket
from urllib.parse import quote

import numpy as np
import pytest
from bs4 import BeautifulSoup
from PIL import Image
from starlette.testclient import TestClient

from core.console import UserError
from search.__main__ import main
from search.ask import Search
from search.serve import is_loopback, make_app, own_names
from tests.unit.search.conftest import HOSTILE, write_stores


@pytest.fixture(scope="module")
def client(built):
    with TestClient(make_app(Search(built.output)), base_url="http://127.0.0.1:8765") as client:
        yield client


def soup(answer) -> BeautifulSoup:
    assert answer.status_code == 200, answer.text
    return BeautifulSoup(answer.text, "html.parser")


def test_a_sentence_shows_what_the_search_finds(client, built):
    search = Search(built.output)
    page = soup(client.get("/", params={"q": "a red dog", "run": "first", "top": "7"}))
    hits = search.find("a red dog", run="first", top=7)
    shown = page.select(".hits > li")
    assert [f"/thumbnail/{hit.row}" for hit in hits] == [item.img["src"] for item in shown]
    assert [f"{hit.score:.3f}" for hit in hits] == [item.select_one(".score").text for item in shown]
    assert [search.alt(hit.row) for hit in hits] == [item.img["alt"] for item in shown]
    assert page.select_one("[name=q]")["value"] == "a red dog"
    assert page.select_one("[name=run][checked]")["value"] == "first"
    # Typed, the same comes without the page around it.
    part = soup(client.get("/results", params={"q": "a red dog", "run": "first", "top": "7"}))
    assert [item.img["src"] for item in part.select(".hits > li")] == [item.img["src"] for item in shown]


def test_an_image_shows_sentences_and_others(client, built):
    page = soup(client.get("/", params={"image": "3"}))
    assert page.select_one(".chosen img")["src"] == "/photo/3"
    assert len(page.select(".sentences li")) == 8 and page.select(".hits > li")
    assert "/thumbnail/3" not in [image["src"] for image in page.select(".hits img")]
    own = [item.text for item in page.select("details li")]
    assert own == Search(built.output).own_captions(3)


def test_highlights_name_words_and_frame_regions(client):
    page = soup(client.get("/", params={"q": "a blue cat", "why": "1", "top": "3"}))
    for item in page.select(".hits > li"):
        words = [word.text for word in item.select(".words li")]
        assert words == ["[CLS]", "a", "blue", "cat", "[SEP]"]
        assert item.select("rect title") and re.match(r"[+-]\d\.\d{3}: ", item.select_one("rect title").text)
        picture = client.get(item.select_one("image")["href"])
        assert picture.headers["content-type"] == "image/png"
        alpha = np.asarray(Image.open(io.BytesIO(picture.content)))[..., 3]
        assert alpha.max() > 0
    assert not soup(client.get("/", params={"q": "a blue cat"})).select("svg, .words")


def test_what_runs_make_nothing_of_is_said(client):
    told = soup(client.get("/results", params={"q": "a ☃ <b>☢</b> cat", "run": "first"})).select(".remark")
    assert [one.text for one in told] == ["first: does not know ☃, ☢"]
    assert not soup(client.get("/results", params={"q": "a cat"})).select(".remark")


def test_framed_regions_are_called_by_their_classes(searchable, tmp_path):
    searchable.world.visual.arrays["class_ids"] = np.tile(
        np.array([1, 0, -1, 7, 1, 0], np.int16), (len(searchable.world.ids), 1)
    )
    shutil.rmtree(tmp_path / "visual.zarr")
    shutil.rmtree(tmp_path / "panoptic.zarr")
    write_stores(searchable.world, tmp_path)
    (tmp_path / "objects.txt").write_text("yolk\ngoal,goals\n")
    searchable.build(region_names=tmp_path / "objects.txt")
    page = soup(
        TestClient(make_app(Search(searchable.output)), base_url="http://127.0.0.1").get(
            "/", params={"q": "a blue cat", "why": "1", "top": "3"}
        )
    )
    called = {title.text.partition(" ")[0] for title in page.select("rect title")}
    assert called & {"yolk", "goal"}
    # Whoever cannot point reads it below: the same regions, and of each the words that speak for it.
    for item in page.select(".hits > li"):
        said = [entry.text.split(maxsplit=1) for entry in item.select(".framed li")]
        assert len(said) == len(item.select("rect")) == 3 and said[0][0] in {"yolk", "goal", "region"}


def test_images_are_made_anew(client, built):
    """As JPEG, whatever the file is: nothing a camera or a stranger wrote into it is passed on."""
    for address in ("/photo/2", "/thumbnail/2"):
        answer = client.get(address)
        assert answer.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.format == "JPEG" and image.size == (80, 60) and not image.getexif()


@pytest.mark.parametrize(
    "address",
    [
        "/photo/36", "/thumbnail/36", "/why/99?q=a", "/photo/-1", "/photo/1.0", "/photo/%2e%2e%2fconfig.json", "/thumbnail/..%2f..%2fetc",
        "/static/../serve.py", "/static/..%2fserve.py", "/static/%2e%2e/serve.py", "/?image=36", "/why/0", "/etc/passwd", "/photo/",
    ],
)  # fmt: skip
def test_only_rows_are_served(client, address):
    answer = client.get(address)
    assert answer.status_code == 404 and "root:" not in answer.text and "import" not in answer.text


@pytest.mark.parametrize(
    "address", ["/?image=x", "/?image=1e9", "/?top=-4&q=a", "/?top=99999999&q=a", "/?run=nobody&q=a", "/?q=%00%ff"]
)
def test_what_makes_no_sense_is_left_out(client, address):
    assert soup(client.get(address)).select(".hits > li")


def test_hostile_queries_and_captions_are_text(client):
    for query in (HOSTILE, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</title><script>alert(1)</script>"):
        for address in ("/", "/results"):
            page = soup(client.get(address, params={"q": query, "why": "1", "run": query}))
            assert [s.get("src") for s in page.select("script")] in ([], ["/static/search.js"])
            assert not [tag for tag in page.find_all(True) if any(name.startswith("on") for name in tag.attrs)]
            assert all(image["src"].startswith("/thumbnail/") for image in page.select("img"))
            assert query in page.select_one("h2").text
    page = soup(client.get("/", params={"image": "0"}))
    assert page.select_one(".chosen img")["alt"] == HOSTILE and len(page.select("script")) == 1


def test_a_very_long_sentence_is_cut(client):
    assert len(soup(client.get("/", params={"q": "dog " * 1500})).select_one("[name=q]")["value"]) <= 1000


def test_nothing_is_loaded_from_elsewhere_and_nobody_else_reads_along(client):
    answer = client.get("/", params={"q": "a dog"})
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert (
        answer.headers["cross-origin-resource-policy"] == "same-origin"
        and answer.headers["cache-control"] == "no-store"
    )
    for address in ("/", "/static/style.css", "/static/search.js", "/results?q=a"):
        text = client.get(address).text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), address
    assert " style=" not in answer.text, "the policy would not apply it"


@pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765", ""])
def test_another_name_is_refused(client, name):
    assert client.get("/", headers={"host": name}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.0.0.5"])
def test_its_own_address_is_answered(built, host):
    with TestClient(make_app(Search(built.output), hosts=own_names(host)), base_url="http://127.0.0.1") as client:
        given = {
            name: client.get("/", headers={"host": f"{name}:8765"}).status_code for name in (host, "[::2]", "127.0.0.6")
        }
    assert given == {host: 200, "[::2]": 400, "127.0.0.6": 400}


def test_the_address_answers_once_it_is_printed(built, monkeypatch, capsys):
    import uvicorn

    def run(self, sockets):
        host, port = re.match(r"http://(.*):(\d+)/", capsys.readouterr().out).groups()
        socket.create_connection((host, int(port)), timeout=5).close()
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    main(["serve", "--dataset", "mine", "--results", str(built.results), "--port", "0"])


def test_an_address_that_is_not_there_is_named(built, monkeypatch):
    given = ["serve", "--dataset", "mine", "--results", str(built.results), "--port", "0", "--expose", "--host"]
    with pytest.raises(UserError, match="--host 192.0.2.1 --port 0: .*; choose another --host"):
        main([*given, "192.0.2.1"])
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="; choose another --port"):
        main([*given[:-3], str(taken.getsockname()[1])])


def test_nothing_is_changed_by_asking(client):
    assert client.post("/", data={"q": "a"}).status_code == 405


def test_which_addresses_are_this_machines_own():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", ""))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.3"])
def test_other_addresses_need_a_flag(built, host):
    with pytest.raises(UserError, match="can be reached from other machines.*--expose"):
        main(["serve", "--dataset", "mine", "--results", str(built.results), "--host", host])


def test_a_photo_that_is_gone_is_shown_small(searchable):
    searchable.build(without_captions=True)
    search = Search(searchable.output)
    from pathlib import Path

    Path(search.images[4]["path"]).unlink()
    with TestClient(make_app(search), base_url="http://localhost") as client:
        assert client.get("/photo/4").content == client.get("/thumbnail/4").content == search.thumbnail(4)
        page = soup(client.get("/?image=4"))
        assert "No captions were embedded" in page.text
        assert client.get(f"/?q={quote('a dog')}").status_code == 200
        shutil.rmtree(searchable.output.parent / "thumbnails")
        assert client.get("/photo/4").status_code == 404 and "no thumbnail" in client.get("/photo/4").text


def test_long_captions_are_folded(tmp_path):
    import pyarrow as pa

    from catalog.index import read_captions, read_images, write_index
    from tests.unit.search.conftest import make_searchable

    made = make_searchable(tmp_path, runs=("first",))
    long = "a dog " * 200
    captions = read_captions(made.world.captions).replace_schema_metadata(None)
    captions = captions.set_column(2, "text", pa.array([long] * len(captions)))
    write_index(
        made.world.images,
        made.world.captions,
        read_images(made.world.images)[0].replace_schema_metadata(None),
        captions,
    )
    made.build()
    with TestClient(make_app(Search(made.output)), base_url="http://localhost") as client:
        page = soup(client.get("/?image=0"))
        for entry in page.select(".sentences li"):
            assert len(entry.a.text) <= 205 and entry.select_one(".whole p").text == long
        assert all(one.summary.text == long for one in page.select("details li .long"))
        assert page.select("details li .long") and all(len(image["alt"]) <= 205 for image in page.select("img"))


def test_detectors_of_drawings_are_told_on_photographs(searchable, monkeypatch):
    searchable.build(photographs=True)
    with TestClient(make_app(Search(searchable.output)), base_url="http://localhost") as client:
        assert not soup(client.get("/")).select(".warning"), "these stores are of other weights"
    monkeypatch.setattr("search.build.knows_drawings_only", lambda digest: True)
    for options, told in (({"photographs": True}, True), ({}, False)):
        searchable.build(**options)
        with TestClient(make_app(Search(searchable.output)), base_url="http://localhost") as client:
            assert [one["role"] for one in soup(client.get("/")).select(".warning")] == ["note"] * told
