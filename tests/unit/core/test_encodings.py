"""Texts in encodings of the world: the advice names the right one and shows what it makes of them."""

import pytest

from core.console import UserError
from core.encodings import byte_order, readings
from core.text import decode_text

FRENCH = "un café à l'été, déjà vu naïve"
CHINESE = ("一只狗在海滩上奔跑。两个人坐在长椅上看书", "一隻狗在海灘上奔跑。兩個人坐在長椅上看書")
JAPANESE = "犬がビーチを走っている。二人がベンチに座って本を読んでいる"
RUSSIAN = "собака бежит по пляжу. два человека сидят на скамейке"
CZECH = "pes běží po pláži, žlutý kůň a červený míč"


@pytest.mark.parametrize(
    ("encoding", "text", "python"),
    [
        ("gb18030", CHINESE[0], ""), ("big5", CHINESE[1], ""), ("cp932", JAPANESE, "shift_jis"), ("euc-jp", JAPANESE, ""),
        ("cp949", "개가 해변을 달리고 있다. 두 사람이 벤치에 앉아 있다", "euc_kr"), ("macintosh", FRENCH, "mac_roman"), ("latin1", FRENCH, ""),
        ("cp1252", FRENCH + " “quoted”", ""), ("cp850", FRENCH, ""), ("cp1251", RUSSIAN, ""), ("koi8-r", RUSSIAN, ""), ("cp866", RUSSIAN, ""),
        ("cp1253", "ένας σκύλος τρέχει στην παραλία", ""), ("cp1256", "كلب يجري على الشاطئ", ""),
    ],
)  # fmt: skip
def test_the_likeliest_is_right(encoding, text, python):
    data = "".join(f'a{k}.jpg,"{text}"\n' for k in range(3)).encode(python or encoding)
    at = next(k for k, byte in enumerate(data) if byte > 0x7F)
    name, shown = readings(data, at)[0]
    assert name == encoding and text[: len(shown) - 8] in shown


@pytest.mark.parametrize(("encoding", "text"), [("cp1250", CZECH), ("iso-8859-2", CZECH), ("cp1255", "כלב רץ על החוף"), ("cp1254", "köpek koşuyor, ağaç")])  # fmt: skip
def test_the_right_one_is_among_those_that_are_shown(tmp_path, encoding, text):
    (tmp_path / "c.txt").write_bytes(f"x\n{text}\n".encode(encoding))
    with pytest.raises(
        UserError, match=r"c\.txt, line 2: byte 0x.. is not UTF-8; .*what is right only you can see"
    ) as caught:
        decode_text(tmp_path / "c.txt")
    assert text[:10] in str(caught.value) and encoding in str(caught.value)


def test_wide_encodings_by_their_zeros():
    for text in ("a dog runs", "a café"):
        for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
            assert byte_order(text.encode(encoding)) == encoding.replace("-le", "le").replace("-be", "be")
        assert byte_order(text.encode("utf-16")) == "utf-16" and byte_order(text.encode("utf-32")) == "utf-32"
        assert byte_order(text.encode("latin1")) == ""


def test_what_only_looks_like_ascii(tmp_path):
    (tmp_path / "c.txt").write_bytes(("a\n" + JAPANESE).encode("iso2022_jp"))
    with pytest.raises(UserError, match="line 2: text in iso-2022-jp or a relative"):
        decode_text(tmp_path / "c.txt")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "c.txt").write_bytes(b"\xff\xac\xb1\xb6\x81\x80\x81\xb6\x8f\xb1\xf7\xb1")
    with pytest.raises(UserError, match="in none of the usual encodings"):
        decode_text(tmp_path / "c.txt")
