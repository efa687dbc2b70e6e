"""Tables of captions as spreadsheets, pandas and the field write them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.names import Names, as_name
from catalog.tables import read_table
from core.console import UserError


def table(tmp_path, text: str, name: str = "captions.csv"):
    path = tmp_path / name
    path.write_bytes(text.encode())
    return read_table(path)


def pairs(found) -> list[tuple[object, object]]:
    return [(row["image"], row["caption"]) for row in found.rows]


@pytest.mark.parametrize(
    "text",
    [
        "image,caption\na,a dog\n",
        "\ufeffimage, caption\r\na,a dog\r\n",
        " Image ;CAPTION;\na;a dog;\n",
        "sep=;\r\nimage;caption\r\na;a dog\r\n",
        "caption\timage\na dog\ta\n",
        "image_name| comment_number| comment\na| 0| a dog\n",
        "id,image,caption\n7,a,a dog\n,,\n\n , ,\n",
        '\n \r\nimage, caption\na, "a dog"\n',
    ],
    ids=["plain", "blanks", "excel", "announced", "tabs", "kaggle", "empty rows", "blanks in front"],
)
def test_every_spreadsheets_csv(tmp_path, text):
    found = table(tmp_path, text)
    assert [(i, c.strip()) for i, c in pairs(found)] == [("a", "a dog")]
    assert found.problems == []


def test_empty_rows_are_told(tmp_path):
    found = table(tmp_path, "image,caption\na,a dog\n,\n,\n")
    assert found.notes == [f"{tmp_path / 'captions.csv'}: 2 empty rows passed over"]


def test_what_cannot_be_seen_in_a_header(tmp_path):
    assert pairs(table(tmp_path, "image,\u200bcaption\na.jpg,a dog\n")) == [("a.jpg", "a dog")]


def test_flickrs_token_files(tmp_path):
    assert pairs(table(tmp_path, "\na.jpg#0\tx\n", "a.token")) == [("a.jpg", "x")]
    text = "1.jpg#0\tA dog .\n1.jpg#1\tIt runs\tfast .\n\nbroken\n"
    for name in ("results.token", "captions.txt"):
        found = table(tmp_path, text, name)
        assert pairs(found) == [("1.jpg", "A dog ."), ("1.jpg", "It runs\tfast .")]
        assert found.problems == ["1 lines that are not `name#number<TAB>caption`: 'line 4'"]
    assert pairs(table(tmp_path, "image,caption\na,a dog\n", "captions.txt")) == [("a", "a dog")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;text\na;b\n", "found 'file', 'text'; between them are semicolons"),
        ("a.jpg,a dog\nb.jpg,a cat\n", "in its line 1; found 'a.jpg', 'a dog'. Rename the columns, or add the line"),
        ("image,caption,Caption \na,b,c\n", "the column `caption` is there 2 times ('caption', 'Caption '); keep one"),
        ("", "holds no captions; write one row for each"),
        ("image,caption\n", "holds no captions; write one row for each"),
        ("PK\x03\x04", "is a workbook of a spreadsheet"),
        ("image,caption\na,a \0dog\n", "line 2: byte 0x00 is no text"),
    ],
)
def test_headers_that_cannot_be_read(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        table(tmp_path, text)
    assert message in str(error.value)


def test_a_key_that_is_there_twice(tmp_path):
    with pytest.raises(
        UserError, match=r"captions\.jsonl, line 2: the key 'caption' stands twice in an object; write one"
    ):
        table(
            tmp_path, '{"image": 0, "caption": "a"}\n{"image": 0, "caption": "b", "caption": "c"}\n', "captions.jsonl"
        )
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["image", "caption", "caption"]), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="the column `caption` is there 2 times"):
        read_table(tmp_path / "c.parquet")


def test_what_a_line_of_json_lines_is_not(tmp_path):
    with pytest.raises(UserError, match=r"line 2: not JSON \(Extra data at character 4\); write one object per line"):
        table(tmp_path, "{}\n{} ,,\n", "captions.jsonl")


def test_text_that_a_parquet_file_calls_bytes(tmp_path):
    pq.write_table(pa.table({"image": [b"a"], "caption": ["é".encode()]}), tmp_path / "c.parquet")
    assert pairs(read_table(tmp_path / "c.parquet")) == [("a", "é")]
    for kind in (pa.large_binary(), pa.binary(1), pa.binary_view()):
        pq.write_table(pa.table({"image": pa.array([b"a"], kind), "caption": ["é"]}), tmp_path / "c.parquet")
        assert pairs(read_table(tmp_path / "c.parquet")) == [("a", "é")]
    pq.write_table(pa.table({"image": [{"path": "a.jpg", "bytes": b"x"}], "caption": ["é"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="the column 'image' holds struct<.*>, no names; write images as files"):
        read_table(tmp_path / "c.parquet")
    pq.write_table(pa.table({"image": [b"a"], "caption": [b"\xe9"]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="the column 'caption' holds bytes that are no UTF-8"):
        read_table(tmp_path / "c.parquet")


def test_numbers_stay_what_they_are(tmp_path):
    assert pairs(table(tmp_path, '{"image": 0, "caption": "a"}\n', "c.jsonl")) == [(0, "a")]


def test_a_number_names_an_image_as_it_is_written(tmp_path):
    """1.10 and 1.1 are one number and two names."""
    names = Names("x", ["1.1.jpg", "1.10.jpg", "1.jpg", "1.0.jpg"], ["1.1", "1.10", "1", "1.0"])
    for file, text in (("c.jsonl", '{"image": %s, "caption": "a"}'), ("c.json", '[{"image": %s, "caption": "a"}]')):
        for number in ("1.1", "1.10", "1", "1.0"):
            ((image, _),) = pairs(table(tmp_path, text % number, file))
            assert names.find(as_name(image)) == number
    coco = '{"images": [{"id": 42.0, "file_name": "b"}], "annotations": [{"image_id": 42, "id": 1.50, "caption": "a"}]}'
    assert pairs(table(tmp_path, coco, "c.json")) == [("b", "a")]
    for values, fits in (([1.0, 2.0, None], True), ([1.0, 1.1, None], False)):
        pq.write_table(pa.table({"image": values, "caption": ["a", "b", "c"]}), tmp_path / "c.parquet")
        if fits:
            assert len(read_table(tmp_path / "c.parquet").rows) == 3
            continue
        with pytest.raises(UserError, match="1 images are named by numbers with fractions; write names as text: 1.1"):
            read_table(tmp_path / "c.parquet")


def test_the_broken_line_of_kaggles_flickr30k(tmp_path):
    found = table(tmp_path, "image_name| comment_number| comment\na.jpg| 0| a dog\nb.jpg| 4   A dog runs .\n")
    assert [(i, c.strip()) for i, c in pairs(found)] == [("a.jpg", "a dog"), ("b.jpg", "A dog runs .")]
    assert found.notes == [
        f"{tmp_path / 'captions.csv'}, line 3: lacks a bar behind the number 4, taken as if it were there"
    ]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ('[{"Image": "a.jpg", "caption": "a dog"}]', [("a.jpg", "a dog")]),
        (
            '{"images": [{"id": 42, "file_name": "b.jpg"}], "annotations": [{"image_id": 42, "id": 7, "caption": "x"}, '
            '{"image_id": 9, "id": 8, "caption": "y"}]}',
            [("b.jpg", "x"), ("9", "y")],
        ),
        ('{"images": [{"sentences": []}]}', "has Karpathy's layout; write source: karpathy"),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": []}]}', "COCO's are in the files captions_*.json"),
        ('{"a.jpg": ["x"]}', "expected a list of objects"),
        ('{"image": 1}\n{"image": 2}', "with an object a line it is called .jsonl"),
        ('[{"image": "a", "image": "b", "caption": "x"}]', "the key 'image' stands twice"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
            "1 ids stand for several images; keep one of each: '1'",
        ),
    ],
    ids=["rows", "coco", "karpathy", "instances", "other", "lines", "twice", "one id of two files"],
)
def test_json_tables(tmp_path, text, result):
    if isinstance(result, list):
        assert pairs(table(tmp_path, text, "captions.json")) == result
        return
    with pytest.raises(UserError) as error:
        table(tmp_path, text, "captions.json")
    assert result in str(error.value)


@pytest.mark.parametrize("text", ['image,caption,"split\na.jpg,a dog,x\n', 'image,caption,"x"y\na.jpg,a dog,x\n'])
def test_quotes_of_a_header_that_are_not_closed(tmp_path, text):
    with pytest.raises(UserError, match="the row that begins in line 1: .*; close its quotes"):
        table(tmp_path, text)
