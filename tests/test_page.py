"""The page of a tracking run: what stands in it, and in Chromium that it plays, sorts and fits."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import assert_fits, assert_silent, browser, open_page, wait_for
from PIL import Image

from videossl.tracking.overlay import write_comparison, write_contact_sheet
from videossl.tracking.page import write_page
from videossl.tracking.scoring import ObjectScore, paired_difference, scores_record

HOSTILE = "<img src=x onerror=document.title='broken'>\u00e9"
LEVELS = {"good": 0.9, HOSTILE: 0.2, "fair_1": 0.5}
FRAMES = 24


def score(name: str, number: int, level: float) -> ObjectScore:
    values = tuple(level - 0.005 * index for index in range(FRAMES - 2))
    return ObjectScore(name, number, values, tuple(value / 2 for value in values))


def write_clip(out: Path, name: str) -> None:
    frames = [np.full((96, 160, 3), 60 + 5 * index, np.uint8) for index in range(FRAMES)]
    masks = [np.zeros((96, 160), np.uint8) for _ in frames]
    for index, mask in enumerate(masks):
        mask[20:60, 4 * index : 4 * index + 40] = 1
    path = out / "comparison" / f"{name}.mp4"
    write_comparison(path, frames, masks, masks[::-1], frames_per_second=12)
    (out / "overlay").mkdir(exist_ok=True)
    (out / "overlay" / f"{name}.mp4").write_bytes(path.read_bytes())
    write_contact_sheet(out / "overlay" / f"{name}.png", [(name, frames[:6])])


def record_of(rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "command": "videossl track",
        "main_row": "trained",
        "checkpoint": "runs/<b>mine</b>",
        "davis": "data/DAVIS",
        "split": "val",
        "video": None,
        "preset": "videossl",
        "versions": {"videossl": "0.1.0", "torch": "2.11"},
        "complete": True,
        "rows": rows,
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run")
    rows: dict[str, Any] = {}
    for row, factor in (("identity", 0.5), ("lab", 0.75), ("trained", 1.0)):
        scores = [score(name, 1, factor * level) for name, level in LEVELS.items()]
        scores.append(score("good", 2, factor * 0.95))
        rows[row] = {"protocol": {"top_k": 10}, "seconds_per_frame": 0.1, **scores_record(scores)}
    rows["trained"]["intervals"] = {"J&F-Mean": [0.31, 0.52]}
    for name in LEVELS:
        write_clip(out, name)
    (out / "attention" / "good").mkdir(parents=True)
    Image.new("RGB", (80, 40)).save(out / "attention" / "good" / "frame 5.png")
    return out, record_of(rows)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as driver:
        yield driver


class Tags(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def attributes(self, tag: str, name: str) -> list[str]:
        return [str(attrs[name]) for found, attrs in self.found if found == tag and name in attrs]


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ({}, "Tracking with mine: DAVIS val"),
        ({"checkpoint": None, "features": "mine:encode"}, "Tracking with mine:encode: DAVIS val"),
        ({"davis": None, "split": None, "youtube_vos": "data/YT"}, "Tracking with mine: YT"),
        ({"video": "my clip.mp4"}, "Tracking with mine: my clip.mp4"),
    ],
)
def test_the_title_says_what_was_tracked_with_what(
    given: dict[str, Any], title: str, tmp_path: Path
) -> None:
    record = {**record_of({}), "checkpoint": "runs/mine", **given}
    assert f"<h1>{title}</h1>" in write_page(tmp_path, record).read_text()


def test_differences_between_rows_are_a_table_of_points(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, record = run
    scores = {"good": 0.9, "fair_1": 0.5}
    main = [score(name, 1, level) for name, level in scores.items()]
    other = [score(name, 1, level - 0.1) for name, level in scores.items()]
    found = paired_difference(main, [other]).as_dict()
    page = write_page(tmp_path, {**record, "differences": {"untrained (mean of 3)": found}})
    text = page.read_text()
    line = text[text.index("untrained (mean of 3)") :].partition("</tr>")[0]
    assert re.findall(r">([^<>]+)<", line)[1:3] == ["+7.5", "+7.5 to +7.5"]
    assert ">2 of 2<" in line
    assert "differences." not in text  # not once more among the settings


def test_the_page_holds_all_that_it_shows(run):
    out, record = run
    text = write_page(out, record, date=datetime(2026, 1, 2, 3, 4)).read_text()
    tags = Tags(text)
    shown = [*tags.attributes("video", "src"), *tags.attributes("img", "src")]
    assert len(shown) == 3 + 3 + 1
    assert all(source.startswith("data:") for source in shown)
    assert not tags.attributes("script", "src")
    assert not [href for href in tags.attributes("a", "href") if not href.startswith("#")]
    assert "2026-01-02 03:04" in text
    for word in ("preset videossl", "torch 2.11", "protocol.top_k", "31.0 to 52.0"):
        assert word in text


def test_names_from_files_cannot_become_markup(run):
    out, record = run
    text = write_page(out, record).read_text()
    assert "<img src=x" not in text
    assert text.isascii()  # whatever the locale in which it is written
    assert "<b>mine" not in text
    assert [name for tag, attrs in Tags(text).found for name in attrs if name == "onerror"] == []


def test_scores_are_those_of_the_record(run):
    out, record = run
    text = write_page(out, record).read_text()
    for row in record["rows"].values():
        for value in row["global"].values():
            assert f'data-value="{value}">{100 * value:.1f}' in text


def test_large_videos_stay_beside_the_page(run):
    out, record = run
    text = write_page(out, record, embed_bytes=10).read_text()
    sources = Tags(text).attributes("video", "src")
    assert sorted(sources)[-2:] == ["comparison/fair_1.mp4", "comparison/good.mp4"]
    assert re.fullmatch(r"comparison/%3Cimg%20[^<>\"' ]+\.mp4", min(sources))
    assert "not part of this file" in text


def test_a_run_without_scores_shows_its_video(tmp_path: Path):
    write_clip(tmp_path, "mine")
    (tmp_path / "comparison/mine.mp4").unlink()
    record = record_of({"trained": {"protocol": {"top_k": 10}}})
    text = write_page(tmp_path, {**record, "davis": None, "video": "my clip.mp4"}).read_text()
    assert len(Tags(text).attributes("video", "src")) == 1
    assert "<table" not in text
    assert "<svg" not in text
    assert "my clip.mp4" in text


def test_a_record_read_back_from_json_gives_the_same_page(run):
    out, record = run
    date = datetime(2026, 1, 2)
    direct = write_page(out, record, date=date).read_text()
    assert write_page(out, json.loads(json.dumps(record)), date=date).read_text() == direct


def first_cells(driver: Any, table: int) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll('table.sortable')[arguments[0]].tBodies[0].rows]"
        ".map(row => row.cells[0].textContent)",
        table,
    )


@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("embed_bytes", [2**26, 0])
def test_the_page_plays_and_fits(run, chromium, tmp_path, width, embed_bytes):
    out, record = run
    open_page(chromium, write_page(out, record, embed_bytes=embed_bytes), width=width)
    video = "document.querySelector('video')"
    chromium.execute_script(f"{video}.scrollIntoView({{block: 'center'}})")
    wait_for(chromium, f"{video}.readyState >= 2")
    begin = wait_for(chromium, f"{video}.currentTime")
    wait_for(chromium, f"{video}.currentTime !== {begin} && !{video}.paused")
    assert_fits(chromium)
    assert_silent(chromium)
    assert chromium.title.startswith("Tracking with <b>mine</b>"[:14])
    chromium.save_screenshot(str(tmp_path / f"page_{width}.png"))


def test_the_worst_comes_first_and_a_click_sorts(run, chromium):
    out, record = run
    open_page(chromium, write_page(out, record), width=1200)
    worst_first = [f"{HOSTILE}_1", "fair_1_1", "good_1", "good_2"]
    assert first_cells(chromium, 1) == worst_first
    headings = chromium.execute_script(
        "return [...document.querySelectorAll('section h3')].map(head => head.textContent)"
    )
    assert headings == [HOSTILE, "fair_1", "good"]
    head = "document.querySelectorAll('table.sortable')[1].tHead.rows[0].cells"
    press = "arguments[0].querySelector('button').click()"
    cell = chromium.execute_script(f"return {head}[1]")
    assert cell.get_attribute("aria-sort") == "ascending"
    chromium.execute_script(press, cell)
    assert cell.get_attribute("aria-sort") == "descending"
    assert first_cells(chromium, 1) == worst_first[::-1]
    name = chromium.execute_script(f"return {head}[0]")
    name.find_element("tag name", "button").send_keys("\ue007")  # Enter
    assert name.get_attribute("aria-sort") == "ascending"
    assert cell.get_attribute("aria-sort") is None
    assert first_cells(chromium, 1)[-2:] == ["good_1", "good_2"]
    assert first_cells(chromium, 0) == ["identity", "lab", "trained"]


def test_a_video_out_of_sight_rests(run, chromium):
    out, record = run
    open_page(chromium, write_page(out, record), width=1200)
    last = "[...document.querySelectorAll('video')].at(-1)"
    chromium.execute_script(f"{last}.scrollIntoView({{block: 'center'}})")
    wait_for(chromium, f"!{last}.paused && {last}.currentTime > 0")
    chromium.execute_script("scrollTo(0, 0)")
    wait_for(chromium, f"{last}.paused")
    chromium.execute_script(f"{last}.scrollIntoView({{block: 'center'}})")
    wait_for(chromium, f"!{last}.paused")
