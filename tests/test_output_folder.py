"""Folders that commands fill: what is refused, and that nothing outside of them is touched."""

from pathlib import Path

import pytest

from videossl.errors import UserError
from videossl.io.output_files import check_folder, check_writable, clear_folder

OWNED = ("result.json", "trained")


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    precious = tmp_path / "elsewhere/mine.png"
    precious.parent.mkdir()
    precious.write_bytes(b"mine")
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text("{}")
    (out / "trained").symlink_to(precious.parent)
    clear_folder(out, marker="result.json", owned=OWNED)
    assert list(out.iterdir()) == []
    assert precious.read_bytes() == b"mine"


def test_a_check_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_folder(Path(), marker="result.json", owned=OWNED)
    check_folder(tmp_path / "a/b", marker="result.json", owned=OWNED)
    (tmp_path / "out").mkdir()
    check_folder(tmp_path / "out", marker="result.json", owned=OWNED)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_a_folder_that_cannot_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out, message in (
        (tmp_path / "file", "file is a file: --out takes a folder"),
        (tmp_path / "file/below", "file is a file: --out must lie in a folder"),
        (tmp_path / ("n" * 300), "cannot be written to: File name too long"),
        (tmp_path / "link", "link is no folder: --out takes a folder"),
        (Path("/proc/videossl"), "--out /proc/videossl cannot be written to: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            check_writable(out)
