"""The tools behind docs/results.md: ablations, the table beside published rows, the list of licensed videos."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from videossl.data.synthetic import render_davis
from videossl.data.table import read_manifest

TOOLS = Path(__file__).parents[1] / "tools"


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # worker processes and dataclasses look it up
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
    module.main()


PLAN = {
    "config": str(TOOLS.parent / "configs/tracking_cpu.yaml"),
    "shared": [
        "encoder.name=tiny",
        "data.short_side=48",
        "data.videos_per_step=2",
        "data.num_workers=0",
        "data.holdout_fraction=0.2",
        "train.steps=2",
        "train.evaluate_every=2",
        "train.evaluate_batches=1",
        "monitor.pictures=false",
        "tasks.colorization.crop_size=32",
        "tasks.colorization.frame_shift=4",
    ],
    "seeds": [0, 1],
    "track": {"short_side": 64, "mirror": False, "radius": 8},
    "baseline": {"name": "baseline"},
    "questions": {
        "objective": [{"name": "untrained", "untrained": True}],
        "window": [{"name": "radius 2", "track": {"radius": 2}}],
    },
}


@pytest.mark.slow
def test_ablations_are_trained_tracked_judged_and_drawn_once(video_folder, tmp_path, monkeypatch):
    ablate = tool("ablate_tracking")
    monkeypatch.setattr(ablate, "num_cores", lambda: 1)
    monkeypatch.setattr(ablate, "worker_pool", Here)
    render_davis(tmp_path / "davis", seed=0, num_sequences=2, num_frames=4, height=64, width=96)
    plan = tmp_path / "plan.yaml"
    plan.write_text(yaml.safe_dump(PLAN))
    out = tmp_path / "out"
    arguments = [
        plan,
        "--manifest",
        video_folder,
        "--davis",
        tmp_path / "davis",
        "--seeds",
        0,
        "-o",
        out,
    ]
    run(ablate, monkeypatch, *arguments)
    assert len(list((out / "runs").glob("*_seed0"))) == 1  # rows that track otherwise train nothing
    kept = {path: path.read_bytes() for path in (out / "scores").glob("*.json")}
    by_row = {json.loads(text)["row"]: json.loads(text)["sequences"] for text in kept.values()}
    assert set(by_row) == {"baseline", "untrained", "radius 2"}
    means = {name: 50 * np.mean([sum(v) for v in found.values()]) for name, found in by_row.items()}
    table = (out / "tables.md").read_text()
    assert f"| baseline | {means['baseline']:.1f} | 1 | | |" in table
    gain = means["untrained"] - means["baseline"]
    assert f"| untrained | {means['untrained']:.1f} | 1 | {gain:+.1f} [" in table
    assert {path.name for path in out.glob("*.png")} == {"objective.png", "window.png"}
    monkeypatch.setattr(ablate, "track_sequence", None)  # nothing is tracked again
    run(ablate, monkeypatch, *arguments)
    assert {path: path.read_bytes() for path in (out / "scores").glob("*.json")} == kept


class Here:
    """A pool of this very process."""

    def __init__(self, num_workers: int) -> None:
        self.map = map

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def plan_of(out: Path, shared: tuple[str, ...] = (), **track: str) -> Any:
    ablate = tool("ablate_tracking")
    config = str(out / "config.yaml")
    return ablate.Plan(config, shared, track, (0,), ablate.Setting("baseline"), {}, out, out, [])


def test_what_a_row_sets_of_the_protocol_comes_last(tmp_path):
    plan = plan_of(tmp_path, short_side="64", radius="8")
    changed = plan.protocol_of(tool("ablate_tracking").Setting("row", track={"radius": "2"}))
    assert (changed.short_side, changed.radius) == (64, 2)


def test_a_training_is_read_again_only_where_all_of_its_settings_are_the_same(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 3")
    row = tool("ablate_tracking").Setting("row", train=("seed=1",))
    short, long = plan_of(tmp_path, ("train.steps=2",)), plan_of(tmp_path, ("train.steps=3",))
    assert short.run_of(row, 0) != long.run_of(row, 0)
    assert short.run_of(row, 0) == plan_of(tmp_path, ("train.steps=2",), radius="2").run_of(row, 0)
    before = short.run_of(row, 0)
    (tmp_path / "config.yaml").write_text("# a remark\nseed: 3")
    assert short.run_of(row, 0) == before
    (tmp_path / "config.yaml").write_text("seed: 4")
    assert short.run_of(row, 0) != before


def test_shares_of_the_videos_are_nested_and_keep_sources_whole(video_folder, tmp_path):
    ablate = tool("ablate_tracking")
    plan = dataclasses.replace(plan_of(tmp_path), manifest=video_folder)
    sources = [
        {entry.group for entry in read_manifest(ablate.part_of(plan, share))}
        for share in (0.3, 0.6, 1.0)
    ]
    assert sources[0] < sources[1] < sources[2]
    assert len(sources[2]) == len(read_manifest(video_folder))


def test_rows_stand_beside_published_ones_sequence_by_sequence(tmp_path, monkeypatch, capsys):
    rows = {
        "trained": {"per_object": {f"{name}_1": scored(j, f) for name, j, f in OURS}},
        "identity": {"per_object": {"ant_1": scored(0.1, 0.2), "bee_1": scored(0.3, 0.4)}},
    }
    (tmp_path / "a").mkdir()
    (tmp_path / "a/result.json").write_text(json.dumps({"complete": True, "rows": rows}))
    published = {"id": "x", "ant": frames(0.5, 0.7), "bee": frames(0.9, 0.9), "cat": frames(0, 0)}
    (tmp_path / "x_davis.json").write_text(json.dumps(published))
    module = tool("tracking_results")
    run(module, monkeypatch, tmp_path / "a", "--published", tmp_path, "--methods", "x")
    assert capsys.readouterr().out.splitlines() == [
        "| | trained | identity | x |",
        "|---|---|---|---|",
        "| ant | 70.0 | 15.0 | 60.0 |",
        "| bee | 50.0 | 35.0 | 90.0 |",
        "| mean | **60.0** | **25.0** | **75.0** |",
    ]


OURS = [("ant", 0.6, 0.8), ("bee", 0.4, 0.6)]


def scored(j: float, f: float) -> dict[str, dict[str, float]]:
    return {"J": {"mean": j}, "F": {"mean": f}}


def frames(j: float, f: float) -> dict[str, list[str]]:
    return {"J": [f"{j - 0.1:.3f}", f"{j + 0.1:.3f}"], "F": [f"{f:.3f}"]}


def test_rows_of_several_checkpoints_carry_their_folders(tmp_path, monkeypatch, capsys):
    for folder, j in (("a", 0.2), ("b", 0.4)):
        rows = {
            "features": {"per_object": {"ant_1": scored(j, j)}},
            "identity": {"per_object": {"ant_1": scored(0.1, 0.1)}},
        }
        (tmp_path / folder).mkdir()
        record = json.dumps({"complete": True, "rows": rows})
        (tmp_path / folder / "result.json").write_text(record)
    run(tool("tracking_results"), monkeypatch, tmp_path / "a", tmp_path / "b")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "| | a, features | identity | b, features |"
    assert printed[2] == "| ant | 20.0 | 10.0 | 40.0 |"


def test_a_run_that_is_not_finished_is_no_row(tmp_path, monkeypatch):
    (tmp_path / "result.json").write_text(json.dumps({"complete": False, "rows": {}}))
    with pytest.raises(SystemExit, match="is not finished: run its command again"):
        run(tool("tracking_results"), monkeypatch, tmp_path)


DATA = """# DATA
## videos/unlabelled/
| file | source | licence of source repo | more |
| --- | --- | --- | --- |
| a_s0.mp4 | one/a: x.mp4 | MIT | |
| a_s1.mp4 | one/a: x.mp4 | MIT | |
| b.mp4 | two/b: y.mp4 | CC BY-NC 4.0 | |
| c.mp4 | three/c: z.mp4 | none stated | |
| d.mp4 | four/d: z.mp4 | BSD | |

## videos/odd/
| e.mp4 | five/e: z.mp4 | MIT | |
"""


def test_only_videos_under_an_allowed_licence_are_listed(tmp_path, monkeypatch, capsys):
    (tmp_path / "DATA.md").write_text(DATA)
    fight = tmp_path / "videos/actions/survfight/fight/fi001.mp4"
    for path in [
        *(tmp_path / "videos/unlabelled" / f"{n}.mp4" for n in ("a_s0", "a_s1", "d")),
        fight,
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    out = tmp_path / "list.csv"
    run(tool("licensed_videos"), monkeypatch, tmp_path / "DATA.md", "-o", out)
    rows = [line.split(",") for line in out.read_text().splitlines()[1:]]
    assert [(Path(row[0]).name, row[1], row[3]) for row in rows] == [
        ("a_s0.mp4", "a", "MIT"),
        ("a_s1.mp4", "a", "MIT"),
        ("d.mp4", "d", "BSD"),
        ("fi001.mp4", "survfight/fight/0", "MIT"),
    ]
    assert "4 videos (3 MIT, 1 BSD)" in capsys.readouterr().out


def test_a_listed_video_that_is_not_there_is_named(tmp_path, monkeypatch):
    (tmp_path / "DATA.md").write_text(DATA)
    with pytest.raises(SystemExit, match=r"3 files of the list are not there, the first: .*a_s0"):
        run(tool("licensed_videos"), monkeypatch, tmp_path / "DATA.md", "-o", tmp_path / "l.csv")
