import codecs
import csv
import io

import pytest

from videossl.catalog.list_file import read_list
from videossl.config import read_yaml, with_overrides
from videossl.errors import UserError
from videossl.io.input_files import csv_text, decoded_text, delimiter_of, json_lines, table_rows
from videossl.probe.detection import _names_of
from videossl.probe.labelled_split import _read_split

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


FORMULAS = ["=1+1", "+A1", "-2+3", "@SUM(A1)", "'=1", "''-x", "\t=1", "=1,2", '="a"']
PLAIN = ["a=b", "'quoted'", "-1.5", "+3", "-inf", "1e-3", "", "C:\\-x", "a-b.mp4"]


def test_no_text_of_a_csv_is_a_formula_and_all_are_read_back():
    names = [*FORMULAS, *PLAIN]
    text = csv_text([["path", "number"], *([name, -1.5] for name in names)])
    cells = [row[0] for row in csv.reader(io.StringIO(text))][1:]
    assert cells[len(FORMULAS) :] == PLAIN
    assert all(cell[0] == "'" for cell in cells[: len(FORMULAS)])
    assert all(row[1] == "-1.5" for row in list(csv.reader(io.StringIO(text)))[1:])
    assert [values["path"] for _, values in table_rows(text, ",")] == names


def test_names_that_look_like_formulas_are_found_again_by_their_list(tmp_path):
    for name in ("=a.mp4", "-b.mp4", "'=c.mp4"):
        (tmp_path / name).write_bytes(b"x")
    names = sorted(path.name for path in tmp_path.iterdir())
    (tmp_path / "list.csv").write_text(
        csv_text([["path", "label"], *([n, "@home"] for n in names)])
    )
    rows = read_list(str(tmp_path / "list.csv"), is_there=lambda path: (tmp_path / path).exists())
    assert [row.path for row in rows] == names
    assert {row.label for row in rows} == {"@home"}


@pytest.mark.parametrize(
    ("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("- ", ""), ("[[", ""), ("{a: [", "")]
)
def test_yaml_that_is_nested_too_deep_fails_in_one_line(opening, closing, tmp_path):
    text = opening * 20_000 + closing * 20_000
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"is not YAML: .*nested more than 50 deep"):
        read_yaml(tmp_path / "c.yaml")
    with pytest.raises(UserError, match=r"not YAML: .*nested more than 50 deep"):
        with_overrides({}, [f"seed={text}"])


def test_records_that_are_no_text_are_left_out_and_said_once(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": \xff\xfe}\n\xff\n\n[1]\n{"step": 2}\n{"step": ')
    assert list(json_lines(path)) == [{"step": 1}, {"step": 2}]
    assert [r.getMessage().count("2 of its lines are no JSON") for r in caplog.records] == [1]
