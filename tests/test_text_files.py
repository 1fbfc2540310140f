import codecs

import pytest

from videossl.config import read_yaml
from videossl.detection.voc import _names_of
from videossl.errors import UserError
from videossl.probe.split import _read_split
from videossl.text_files import decoded_text, delimiter_of, table_rows

MARKED = [
    *("é\n".encode(), codecs.BOM_UTF8 + "é\n".encode(), "é\n".encode("utf-16")),
    *(codecs.BOM_UTF16_BE + "é\n".encode("utf-16-be"), "é\n".encode("utf-32")),
]


@pytest.mark.parametrize("data", MARKED)
def test_byte_order_mark_tells_the_encoding(data):
    assert decoded_text(data) == "é\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_config_with_a_byte_order_mark_is_read(tmp_path, encoding):
    (tmp_path / "c.yaml").write_bytes("out: é\n".encode(encoding))
    assert read_yaml(tmp_path / "c.yaml") == {"out": "é"}


def test_config_that_is_no_text_fails(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"out: \xff\n")
    with pytest.raises(UserError, match="is not YAML"):
        read_yaml(tmp_path / "c.yaml")


def test_voc_list_with_a_byte_order_mark_is_read_and_leftovers_are_no_lists(tmp_path):
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_bytes(codecs.BOM_UTF8 + b"000005\r\n000007\r\n")
    (lists / "._train.txt").write_bytes(b"\0\5")
    assert _names_of(tmp_path, "train") == ["000005", "000007"]
    with pytest.raises(UserError, match=r"there are train$"):
        _names_of(tmp_path, "val")


@pytest.mark.parametrize(
    "data",
    [
        b"path,split\na.mp4,train\nb.mp4,test\n",
        b" path ; Split \na.mp4 ; train\n b.mp4;TEST \n ; \n",
        codecs.BOM_UTF8 + b"split\tfile\ntrain\ta.mp4\ntest\tb.mp4\n",
        "path;split\r\na.mp4;train\r\nb.mp4;test\r\n".encode("utf-16"),
    ],
)
def test_split_files_are_read_as_spreadsheets_write_them(tmp_path, data):
    (tmp_path / "s.csv").write_bytes(data)
    assert _read_split(tmp_path / "s.csv") == {"a.mp4": "train", "b.mp4": "test"}


def test_delimiter_is_the_one_that_gives_the_known_names():
    assert delimiter_of("a;path;label,x", ("path", "label"), needed=("path",)) == ";"
    assert delimiter_of("label", ("path", "label"), needed=("path",)) == ""


def test_table_with_too_many_values_names_the_line():
    rows = table_rows("path,label\na,b,\n\nc,d,e\n", ",")
    assert next(rows) == (2, {"path": "a", "label": "b"})
    with pytest.raises(ValueError, match="line 4: 3 values for 2 columns"):
        next(rows)
