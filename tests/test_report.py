"""`videossl report`: what stands on the page is what the run wrote, and the page works in a browser."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from browser import assert_fits, assert_silent, browser, open_page, wait_for

from videossl.__main__ import main
from videossl.engine.metrics import RunLogger
from videossl.io.pictures import write_video
from videossl.report.run_page import Curve, curve_plot, nice_ticks
from videossl.report.run_record import differing_settings, read_run

NASTY = "a\"><img src=x onerror=document.title='hit'>"


def task(accuracy: float) -> dict:
    return {
        "order": {
            "loss": 1 - accuracy,
            "accuracy": accuracy,
            "chance": 0.5,
            "shortcut_baseline": 0.8125,
        }
    }


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "one", lr=0.001)


def make_run(out: Path, *, lr: float) -> Path:
    out.mkdir()
    config = {"out": str(out), "tasks": {"order": {"stage": "res5"}}, "optim": {"lr": lr}}
    (out / "config.yaml").write_text(yaml.safe_dump({**config, "train": {"steps": 40}}))
    environment = {"videossl": "9.9.9", "gpus": ["NVIDIA Z"], "packages": {"torch": "7.7"}}
    (out / "env.json").write_text(json.dumps(environment))
    picture = torch.zeros(3, 20, 30, dtype=torch.uint8)
    with RunLogger(out, is_main=True, first_step=0, total_steps=40) as logger:
        for step in (10, 20, 30):
            logger.write(step, "line", {"tasks": task(step / 100), "lr": lr}, "train/")
        logger.write(20, "line", {"val": task(0.625)}, "val/")
        logger.draw(20, "val/order", {"older": picture})
        logger.draw(30, "val/order", {"older": picture + 255})
    return out


def add_tracking(run: Path) -> None:
    folder = run / "tracking"
    frames = np.zeros((8, 32, 48, 3), dtype=np.uint8)
    write_video(folder / "overlay" / "dog.mp4", frames, frames_per_second=8)
    scores = {"global": {"J&F-Mean": 0.5678, "J-Mean": 0.5, "F-Mean": 0.6}}
    record = {"davis": "/data/DAVIS", "split": "val", "rows": {"trained": scores}}
    (folder / "result.json").write_text(json.dumps({**record, "checkpoint": str(run)}))


def add_probe(folder: Path, run: Path) -> None:
    folder.mkdir(parents=True)
    rows = {
        "trained": {"top1": [0.4321, 0.3, 0.5]},
        "untrained, seed 0": {"top1": [0.2, 0.1, 0.3], "first_row_minus_this": [0.2321, 0.1, 0.3]},
    }
    record = {"protocol": "linear", "chance": {"top1": 0.1667}, "rows": rows}
    (folder / "result.json").write_text(json.dumps({**record, "checkpoint": str(run)}))


def test_a_run_is_read_as_it_was_written(run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "tas')  # cut off by a kill
    record = read_run(run)
    assert record.last_step == 30
    assert [line["step"] for line in record.metrics] == [10, 20, 30, 20]
    (picture,) = record.pictures
    assert (picture.tag, picture.step) == ("val/order/older", 30)
    assert picture.png.startswith(b"\x89PNG")
    assert record.training_seconds is not None


def test_events_are_read_up_to_where_a_kill_cut_them(run):
    (path,) = (run / "tb").iterdir()
    path.write_bytes(path.read_bytes()[:-20])
    (picture,) = read_run(run).pictures
    assert (picture.tag, picture.step) == ("val/order/older", 20)  # that of step 30 is cut


def test_the_page_holds_what_the_runs_wrote(run, tmp_path):
    other = make_run(tmp_path / NASTY, lr=0.25)
    add_tracking(run)
    add_probe(tmp_path / "probes" / "linear", run)
    page = tmp_path / "report.html"
    results = ["--results", str(tmp_path / "probes")]
    assert main(["report", str(run), str(other), *results, "-o", str(page)]) == 0
    text = page.read_text()
    for said in ("30 of 40", "NVIDIA Z", "9.9.9", "56.8", "43.2", "30.0 to 50.0", "+23.2", "16.7"):
        assert said in text
    assert "<img src=x" not in text
    assert re.search(r"optim\.lr</td><td>0.001</td><td>0.25", text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_page_works_in_a_browser(run, tmp_path):
    add_tracking(run)
    other = make_run(tmp_path / NASTY, lr=0.25)
    page = tmp_path / "report.html"
    assert main(["report", str(run), str(other), "-o", str(page)]) == 0
    with browser() as driver:
        for width in (1200, 400):
            open_page(driver, page, width=width)
            assert_fits(driver)
            drawn = "return document.querySelectorAll('svg.plot polyline, svg.plot circle').length"
            assert driver.execute_script(drawn) >= 8
            driver.execute_script("[...document.images].forEach(i => i.loading = 'eager')")
            assert wait_for(
                driver, "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
            )
            assert driver.title.startswith("2 runs: one, a")
        assert_silent(driver)


@pytest.mark.parametrize(("needed", "outcome"), [("1", pytest.fail), ("0", pytest.skip)])
def test_a_missing_browser_fails_where_it_is_needed_and_skips_elsewhere(
    tmp_path, monkeypatch, needed, outcome
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("VIDEOSSL_NEED_BROWSER", needed)
    with pytest.raises(outcome.Exception, match="not installed"), browser():
        pass


def test_a_curve_lies_where_its_values_are():
    svg = curve_plot("t", [Curve("c", [(0, 0.0), (50, 0.5), (100, 1.0)], 0)])
    points = re.search(r'polyline points="([^"]+)"', svg)[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert y0 > y2  # up is more
    assert curve_plot("nothing", [Curve("c", [], 0)]) == ""


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *((0, 1), (0.47, 0.83), (0, 37), (-3, 900), (5, 5), (1e-5, 1e-3), (0, 1e-14), (0, 5e-324)),
        *((1e17, 1e17), (-1e300, 1e300), (1e299, 1e299)),
    ],
)
def test_ticks_are_round_few_and_hold_both_ends(low, high):
    ticks = nice_ticks(low, high)
    slack = 1e-9 * (high - low)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert any(mantissa == pytest.approx(f) for f in (1, 2, 2.5, 5, 10))


def test_only_differing_settings_are_rows():
    rows = differing_settings([{"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"b": 2, "c": [1, 2]}}])
    assert rows == {"a.b": ["1", "2"], "d": ["3", "not set"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere holds no run: it has no config.yaml"),
        (["RUN", "--results", "empty"], "empty holds no result.json"),
        (["RUN", "--results", "foreign"], "is none of the runs: give that run too"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(run, tmp_path, monkeypatch, arguments, says, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    add_probe(Path("foreign"), Path("elsewhere"))
    given = [str(run) if argument == "RUN" else argument for argument in arguments]
    assert main(["report", *given, "-o", "page.html"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not Path("page.html").exists()


PROBE = {"protocol": "knn", "chance": {"top1": 0.5}}
TRACKING = {"davis": "D", "split": "val"}


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{", "Expecting property name"),
        ("[]", "it holds no record but a list"),
        ("[" * 100_000, "recursion"),
        ({**PROBE, "rows": []}, "rows does not fit"),
        (PROBE, "rows does not fit: Field required"),
        ({**PROBE, "rows": {"a": {"top1": [1, 2]}}}, "rows.a.top1 does not fit"),
        ({**PROBE, "rows": {"a": {"top1": ["0.4", 0.3, 0.5]}}}, "rows.a.top1.0 does not fit"),
        ({**PROBE, "rows": {"a": None}}, "rows.a does not fit"),
        ({**PROBE, "rows": {"a": {"5-shot": 0.5}}}, "rows.a.shots.5-shot does not fit"),
        ({**PROBE, "chance": None, "rows": {}}, "chance does not fit"),
        ({"voc": "V", "rows": {"a": {"AP50": "0.5"}}}, "rows.a.AP50 does not fit"),
        ({"voc": "V", "rows": []}, "rows does not fit"),
        ({"tasks": {"order": {"accuracy": 0.5}}}, "tasks.order.accuracy does not fit"),
        (
            {"tasks": {"order": {"accuracy": [1, 1, 1], "baselines": {"a": {}}}}},
            "baselines.a.accuracy",
        ),
        ({"tasks": ["order"]}, "tasks does not fit"),
        ({**TRACKING, "rows": {"a": {"global": {"J-Mean": "much"}}}}, "rows.a.global.J-Mean"),
        ({**TRACKING, "rows": {"a": None}}, "rows.a does not fit"),
        ({**TRACKING, "split": 3, "rows": {}}, "split does not fit"),
    ],
)
def test_a_damaged_result_is_left_out_and_said_once(run, tmp_path, caplog, record, says):
    add_probe(run / "sound", run)
    (run / "broken").mkdir()
    text = record if isinstance(record, str) else json.dumps(record)
    (run / "broken" / "result.json").write_text(text)
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    (line,) = [record.getMessage() for record in caplog.records if "left out" in record.message]
    assert line.startswith(f"{run / 'broken' / 'result.json'} is left out: ")
    assert says in line
    assert "43.2" in page.read_text()


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("env.json", "[]", "env.json is left out: it holds no record but a list"),
        ("env.json", '{"gpus": 3}', "gpus does not fit"),
        ("env.json", '{"packages": null}', "packages does not fit"),
        ("config.yaml", "train: null\n", "config.yaml is left out: train does not fit"),
        ("config.yaml", "tasks: [order]\n", "tasks does not fit"),
        ("config.yaml", "tasks: {1: {}, order: {}}\n", "tasks.1.[key] does not fit"),
    ],
)
def test_an_odd_environment_or_config_is_left_out_and_said(run, tmp_path, caplog, name, text, says):
    (run / name).write_text(text)
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    assert says in caplog.text
    assert "30 of" in page.read_text()


def test_metrics_that_no_plot_can_hold_are_not_drawn(run, tmp_path):
    with (run / "metrics.jsonl").open("ab") as file:
        for step in (31, -1, 10**400, "x", True):
            for value in (1e308, -1e308, float("nan"), float("inf"), 10**400, "x", None):
                line = {"step": step, "lr": value, "tasks": {"order": {"accuracy": value}}}
                file.write(json.dumps({**line, "knn": value, "features": [value]}).encode() + b"\n")
        file.write(b"\xff\n" + b"[" * 100_000 + b"\n")
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    places = re.findall(r'(?:points|x|y|x1|y1|y2|cx|cy)="([^"]*)"', page.read_text())
    assert places
    assert not re.search("nan|inf", " ".join(places))


def test_a_few_shot_probe_stands_beside_the_chance_of_its_balanced_classes(run, tmp_path):
    chance = {"top1": 0.75, "balanced_accuracy": 0.1234}
    shots = {"1-shot": {"mean": 0.25, "std": 0.015, "seeds": [0.2]}, "5-shot": None}
    record = {"protocol": "fewshot", "chance": chance, "rows": {"trained": shots}}
    (run / "few").mkdir()
    (run / "few/result.json").write_text(json.dumps(record))
    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    text = page.read_text()
    assert "<td>chance</td><td>12.3</td>" in text
    assert "75.0" not in text
    assert "<td>1-shot 25.0 &#177; 1.5, 5-shot too few videos</td>" in text


def result_of(folder: Path, *, top1: float, **checkpoint: str) -> None:
    folder.mkdir(parents=True)
    rows = {"trained": {"top1": [top1, 0, 1]}}
    (folder / "result.json").write_text(json.dumps({**PROBE, "rows": rows, **checkpoint}))


def run_with_checkpoint(folder: Path, content: bytes) -> str:
    make_run(folder, lr=0.1)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/step_000000001.pt").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_results_go_to_the_run_of_their_checkpoint(tmp_path, monkeypatch):
    digest = run_with_checkpoint(tmp_path / "a", b"a")
    run_with_checkpoint(tmp_path / "b", b"b")
    result_of(tmp_path / "results/moved", top1=0.111, checkpoint="gone/a", checkpoint_sha256=digest)
    # Relative to where the probe ran, which is not where the report is written.
    result_of(tmp_path / "results/relative", top1=0.222, checkpoint="b/checkpoints/dropped.pt")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    given = ["report", "../b", "../a", "--results", "../results"]
    assert main([*given, "-o", "page.html"]) == 0
    text = Path("page.html").read_text()
    assert "<td>a</td><td>knn</td><td>trained</td><td>11.1</td>" in text
    assert "<td>b</td><td>knn</td><td>trained</td><td>22.2</td>" in text


@pytest.mark.parametrize("is_proved", [True, False])
def test_a_result_below_a_run_that_is_of_another_is_left_out_and_both_are_named(
    tmp_path, caplog, is_proved
):
    run_with_checkpoint(tmp_path / "a", b"a")
    digest = run_with_checkpoint(tmp_path / "b", b"b")
    of = {"checkpoint_sha256": digest} if is_proved else {"checkpoint": str(tmp_path / "b")}
    result_of(tmp_path / "a/probe", top1=0.111, **of)
    page = tmp_path / "page.html"
    given = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["report", *given, "-o", str(page)]) == 0
    assert "11.1" not in page.read_text()
    assert f"it lies in the run {tmp_path / 'a'} but is of {tmp_path / 'b'}" in caplog.text
    # A run that trained on has dropped the checkpoint, and its digest is nowhere.
    of = {"checkpoint": str(tmp_path / "a"), "checkpoint_sha256": "0" * 64}
    result_of(tmp_path / "a/earlier", top1=0.333, **of)
    assert main(["report", *given, "-o", str(page)]) == 0
    assert "33.3" in page.read_text()


def test_a_result_of_an_exported_encoder_is_marked_and_needs_one_run(tmp_path, capsys):
    runs = [str(make_run(tmp_path / name, lr=0.1)) for name in ("a", "b")]
    # A config to train with beside it makes no run of the folder.
    (tmp_path / "config.yaml").write_text("tasks: {}\n")
    (tmp_path / "mine.safetensors").write_bytes(b"")
    exported = str(tmp_path / "mine.safetensors")
    result_of(tmp_path / "probe", top1=0.111, checkpoint=exported)
    given = ["--results", str(tmp_path / "probe"), "-o", str(tmp_path / "page.html")]
    assert main(["report", runs[0], *given]) == 0
    assert "<td>a (mine.safetensors)</td>" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    assert main(["report", *runs, *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of which run that is cannot be told" in line


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"checkpoint": "track-small"}, "track-small"),
        (
            {"checkpoint": None, "features": "my_net:encode", "main_row": "my_net.encode"},
            "my_net.encode",
        ),
    ],
)
def test_tracks_of_a_video_of_ones_own_by_any_encoder_stand_under_its_name(tmp_path, given, named):
    runs = [str(make_run(tmp_path / name, lr=0.1)) for name in ("a", "b")]
    tracked = tmp_path / "mine_tracked"
    tracked.mkdir()
    record = {
        "davis": None,
        "split": None,
        "video": "/data/mine.mp4",
        "rows": {named: {"protocol": {}}},
    }
    (tracked / "result.json").write_text(json.dumps(record | given))
    page = tmp_path / "page.html"
    assert main(["report", *runs, "--results", str(tracked), "-o", str(page)]) == 0
    cells = f"<td>{named}</td><td>mine.mp4</td><td>{named}</td><td>not scored</td>"
    assert cells in page.read_text()


def test_a_report_is_not_written_over_what_is_no_page(tmp_path, capsys):
    run, manifest = make_run(tmp_path / "a", lr=0.1), tmp_path / "m.parquet"
    manifest.write_bytes(b"PAR1")
    assert main(["report", str(run), "-o", str(manifest)]) == 2
    assert "name a file that ends in .html" in capsys.readouterr().err
    assert manifest.read_bytes() == b"PAR1"
