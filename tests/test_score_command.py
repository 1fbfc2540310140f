"""`videossl score` from the command line: what it takes, and what it refuses to write over."""

import json
from pathlib import Path

import numpy as np
import pytest

from videossl.__main__ import main
from videossl.io.index_masks import write_mask


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    mask = np.zeros((12, 16), np.uint8)
    mask[3:8, 4:9] = 1
    root = tmp_path / "davis"
    for name in ("ant", "bee"):
        for t in range(4):
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("ant\nbee\n")
    return root


def score(davis: Path, out: Path, *more: str) -> int:
    results = davis / "Annotations/480p"
    paths = [str(results), "--davis", str(davis), "-o", str(out)]
    return main(["score", *paths, "--workers", "1", *more])


@pytest.mark.parametrize("command", ["videossl track", None])
def test_the_record_of_another_command_is_not_written_over(
    davis: Path, tmp_path: Path, command: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out/result.json"
    path.parent.mkdir()
    path.write_text("mine" if command is None else json.dumps({"command": command}))
    before = path.read_bytes()
    assert score(davis, path.parent) == 2
    assert f"result.json is of {command or 'something else'}: choose" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_json_is_the_record_and_all_that_is_printed(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(davis, tmp_path / "out", "--json") == 0
    captured = capsys.readouterr()
    record = json.loads((tmp_path / "out/result.json").read_text())
    assert json.loads(captured.out, parse_constant=pytest.fail) == record
    assert record["global"]["J-Mean"] == 1
    assert "written to" in captured.err


def test_its_own_tables_are_written_again(davis: Path, tmp_path: Path) -> None:
    assert score(davis, tmp_path / "out") == 0
    assert score(davis, tmp_path / "out") == 0


@pytest.mark.parametrize(("text", "names"), [(" ant, bee", ["ant", "bee"]), ("bee,", ["bee"])])
def test_blanks_and_commas_around_names_do_not_count(
    davis: Path, tmp_path: Path, text: str, names: list[str]
) -> None:
    assert score(davis, tmp_path / "out", "--sequences", text) == 0
    found = json.loads((tmp_path / "out/result.json").read_text())
    assert list(found["per_object"]) == [f"{name}_1" for name in names]


@pytest.mark.parametrize("number", ["0", "-3"])
def test_fewer_than_one_worker_is_refused(
    davis: Path, tmp_path: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(davis, tmp_path / "out", "--workers", number) == 2
    assert f"--workers must be >= 1, got {number}" in capsys.readouterr().err
