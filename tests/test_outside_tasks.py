"""Tasks outside of videossl: they run where the command line allows it, and nothing else can allow it."""

import sys
from pathlib import Path

import pytest
import torch

from videossl import pretext
from videossl.__main__ import main
from videossl.config import with_overrides
from videossl.engine.checkpoint import FORMAT
from videossl.errors import UserError
from videossl.models.encoder_sources import find_checkpoint
from videossl.pretext import load

SHOWN_TASK = (Path(__file__).parents[1] / "docs/add_a_task.md").read_text()
SHOWN_TASK = SHOWN_TASK.split("```python\n")[1].split("```")[0]
CONFIG = """
tasks: {{{name}: {{crop_size: 32}}, arrow_of_time: {{crop_size: 32, num_frames: 4, min_motion: 0}}}}
data: {{short_side: 48, videos_per_step: 4, num_workers: {workers}, val_fraction: 0.4}}
train: {{steps: 2, log_every: 1, eval_batches: 1, task_weights: learned, threads_per_process: 1}}
"""


@pytest.fixture(autouse=True)
def _as_found(monkeypatch):
    """What the command line said and what was imported does not outlive a test."""
    before, path = set(sys.modules), list(sys.path)
    yield
    pretext.allow_import(False)
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("mine", "broken", "ends", "bare", "posing"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working folder with a package beside it whose import leaves a trace."""
    (tmp_path / "mine").mkdir()
    trace = f"open({str(tmp_path / 'imported')!r}, 'w').close()\n"
    (tmp_path / "mine/brightness.py").write_text(SHOWN_TASK + trace)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_config(folder: Path, *, workers: int = 0, name: str = "mine.brightness") -> str:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(name=name, workers=workers))
    return str(path)


def one_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("videossl ")]
    (line,) = lines
    return line


def test_a_config_that_names_code_outside_is_refused_and_nothing_is_imported(
    folder, video_folder, capsys
):
    config = write_config(folder)
    arguments = ["--config", config, f"data.manifest={video_folder}", f"out={folder / 'run'}"]
    assert main(["train", *arguments]) == 2
    assert "task 'mine.brightness' is code outside of videossl" in (said := one_line(capsys))
    assert "give --allow-import" in said
    assert main(["audit", "--config", config, "--manifest", str(video_folder), "-o", "a"]) == 2
    assert "give --allow-import" in one_line(capsys)
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    "override", ["allow_import=true", "tasks.allow_import=true", "train.allow_import=true"]
)
def test_no_setting_allows_it(folder, video_folder, capsys, override):
    arguments = [f"data.manifest={video_folder}", f"out={folder / 'run'}", override]
    assert main(["train", "--config", write_config(folder), *arguments]) == 2
    assert one_line(capsys)
    assert not (folder / "imported").exists()


def test_with_the_flag_a_task_outside_trains_in_worker_processes_is_resumed_and_judged(
    folder, video_folder, capsys
):
    out = folder / "run"
    arguments = ["--config", write_config(folder, workers=1), f"data.manifest={video_folder}"]
    arguments += [f"out={out}", "tasks.mine.brightness.weight=2.0"]
    assert main(["train", *arguments, "--allow-import"]) == 0
    assert (folder / "imported").exists()
    metrics = (out / "metrics.jsonl").read_text()
    assert '"mine.brightness"' in metrics or "mine.brightness/" in metrics
    state = torch.load(find_checkpoint(out), weights_only=True)
    assert any("mine/brightness" in key for key in state["model"])
    assert state["config"]["tasks"]["mine.brightness"] == {"crop_size": 32, "weight": 2.0}

    # What was allowed once is not allowed for ever: neither the run nor its checkpoint carries it.
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    assert "give --allow-import" in one_line(capsys)
    judged = ["pretext-eval", "--checkpoint", str(out), "-o", str(folder / "judged")]
    assert main([*judged, "--clips-per-video", "1"]) == 2
    assert "give --allow-import" in one_line(capsys)
    assert main(["audit", "--checkpoint", str(out), "-o", str(folder / "audit")]) == 2
    assert "give --allow-import" in one_line(capsys)
    assert main([*judged, "--clips-per-video", "1", "--allow-import"]) == 0
    assert main(["train", *arguments, "--allow-import"]) == 0


def test_a_checkpoint_that_names_code_outside_runs_none(folder, capsys):
    config = {"out": "x", "tasks": {"mine.brightness": {}}}
    torch.save({"format": FORMAT, "config": config, "model": {}, "step": 1}, "step_000000001.pt")
    for command in ("pretext-eval", "audit"):
        assert main([command, "--checkpoint", "step_000000001.pt", "-o", "out"]) == 2
        assert one_line(capsys)
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise RuntimeError('no\\nway')", r"cannot be imported \(RuntimeError: no\)"),
        ("import sys; sys.exit(3)", r"cannot be imported \(SystemExit: 3\)"),
        ("Task = 1", r"has no class Task\(PretextTask\)"),
        ("class Task: pass", r"has no class Task\(PretextTask\)"),
        (
            "from videossl.pretext.task import PretextTask\nclass Task(PretextTask): Config = dict",
            "no Config that is a TaskConfig",
        ),
    ],
)
def test_a_module_that_is_no_task_fails_in_one_line(folder, code, expected):
    (folder / "mine/other.py").write_text(code)
    pretext.allow_import(True)
    with pytest.raises(UserError, match=expected) as error:
        load("mine.other")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mine.nothing", "mine.../x", "..", "os.path", "a.b;c"])
def test_a_name_that_is_no_task_fails(folder, name):
    pretext.allow_import(True)
    with pytest.raises(UserError, match="task '"):
        load(name)


def test_a_setting_of_a_dotted_task_is_overridden_by_its_whole_name():
    values = {"tasks": {"mine.task": {"a": 1}, "mine": {"b": 1}}}
    assert with_overrides(values, ["tasks.mine.task.a=2"])["tasks"]["mine.task"] == {"a": 2}
    assert with_overrides(values, ["tasks.mine.b=2"])["tasks"]["mine"] == {"b": 2}
    assert with_overrides(values, ["tasks.mine.task=null"])["tasks"] == {"mine": {"b": 1}}


def test_the_settings_of_a_task_outside_are_listed(folder, capsys):
    command = ["train", "--settings", "mine.brightness"]
    assert main(command) == 2
    assert "give --allow-import" in one_line(capsys)
    assert main([*command, "--allow-import"]) == 0
    assert "tasks.mine.brightness.crop_size  112" in capsys.readouterr().out
