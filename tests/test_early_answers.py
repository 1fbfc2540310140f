"""What can be refused without torch is refused before torch is loaded."""

import subprocess
import sys

import pytest
import yaml

from videossl.__main__ import main
from videossl.config import FOLDER, load_config
from videossl.models.encoder import ENCODERS
from videossl.pretext import available, load
from videossl.pretext.settings import CONFIGS

TORCHLESS = """
import sys
sys.modules["torch"] = None  # to import it raises
from videossl.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def torchless(*arguments: str, folder=None) -> tuple[int, str]:
    """The exit code and the last line of a command that cannot load torch."""
    done = subprocess.run(
        [sys.executable, "-c", TORCHLESS, *arguments], capture_output=True, text=True, cwd=folder
    )
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]


CONFIG = ("train", "--config", "real_small", "out=x")


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("train", "--config", "real_smal"), "did you mean 'real_small'"),
        (("train", "--config", "no/where.yaml"), "no/where.yaml"),
        ((*CONFIG, "data.manifst=x"), "data.manifst is not a setting; did you mean data.manifest?"),
        ((*CONFIG, "lr=1"), "lr is not a setting; did you mean optim.lr?"),
        ((*CONFIG, "tasks.colorization.crop=3"), "tasks.colorization.crop is not a setting"),
        ((*CONFIG, "tasks.colorisation={}"), "did you mean 'colorization'?"),
        ((*CONFIG, "tasks.colorization.stage=res9"), "tasks.colorization.stage: got 'res9'"),
        ((*CONFIG, "encoder.name=tini"), "encoder.name"),
        ((*CONFIG, "data.manifest=no.parquet"), "no manifest at no.parquet"),
        ((*CONFIG, "encoder.init=nowhere"), "nowhere does not exist"),
        (("audit", "--config", "nope", "-o", "x"), "no config 'nope'"),
        (("audit", "--checkpoint", "nope", "-o", "x"), "nope does not exist"),
        (("pretext-eval", "--checkpoint", "nope", "-o", "x"), "nope does not exist"),
        (("embed", "no.parquet", "--checkpoint", "track-small", "-o", "x"), "no.parquet"),
        (("export", "--checkpoint", "nope", "-o", "x.onnx"), "nope does not exist"),
        (("export", "--checkpoint", "track-small", "-o", "x.foo"), "x.foo does not say the format"),
        (("track", "--video", "no.mp4", "--mask", "no.png"), "--video no.mp4: no such file"),
        (("track", "--davis", "nowhere", "-o", "x"), "--davis nowhere: no such folder"),
        (("track", "--video", "no.mp4"), "--video needs --mask"),
        (("track", "--davis", ".", "-o", "x", "--preset", "daviz"), "preset 'daviz' is unknown"),
        (("track", "--davis", ".", "-o", "x", "--baselines", "tides"), "baseline tides is unknown"),
        (
            ("probe", "--checkpoint", "nope", "--manifest", "m", "--protocol", "knn", "-o", "x"),
            "nope does not exist",
        ),
        (("track-points", "--checkpoint", "nope", "--badja", ".", "--out", "x"), "nope does not"),
    ],
)
def test_a_wrong_word_is_answered_without_torch(arguments, answer, tmp_path):
    code, line = torchless(*arguments, folder=tmp_path)
    assert code == 2
    assert answer in line


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_folder_that_is_no_run_or_another_run_is_refused_without_torch(tmp_path, dry):
    given = ("train", "--config", "real_small", f"data.manifest={tmp_path}/m.parquet", *dry)
    (tmp_path / "m.parquet").write_bytes(b"")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    code, line = torchless(*given, f"out={tmp_path}/other")
    assert (code, "is not empty and holds no run" in line) == (2, True)
    begun = load_config("real_small", ["out=x", f"data.manifest={tmp_path}/m.parquet"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(begun.model_dump(mode="json")))
    code, line = torchless(*given, f"out={tmp_path}/run", "seed=3")
    assert (code, "seed was 0, is 3" in line) == (2, True)


@pytest.mark.parametrize("task", ["", "cpc"])
def test_settings_are_printed_without_torch(task):
    code, line = torchless("train", "--settings", *filter(None, [task]))
    assert (code, "." in line) == (0, True)


def test_a_package_that_is_not_here_is_said_first(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("videossl.commands.export.find_spec", lambda name: None)
    assert main(["export", "--checkpoint", "track-small", "-o", str(tmp_path / "x.onnx")]) == 2
    assert "pip install 'videossl[onnx]'" in capsys.readouterr().err


def test_the_settings_of_all_tasks_of_the_package_stand_together():
    assert sorted(CONFIGS) == available()
    assert all(load(name).Config is settings for name, settings in CONFIGS.items())


def test_the_encoders_that_a_config_may_name_are_those_that_there_are():
    for name in ENCODERS:
        assert load_config("demo", ["out=x", f"encoder.name={name}"]).encoder.name == name


def test_a_config_of_the_package_goes_by_its_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in FOLDER.glob("*.yaml"):
        assert load_config(file.stem, ["out=x"]) == load_config(file, ["out=x"])


def test_a_file_of_ones_own_comes_before_a_config_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text("{out: mine, tasks: {arrow_of_time: {}}}")
    assert load_config("demo").out == "mine"


def test_words_of_train_may_stand_in_any_order(capsys):
    words = ["--config", "demo", "data.short_side=2", "--dry-run", "out=z"]
    for order in (words, [*words[2:], *words[:2]], [words[4], words[3], *words[:3]]):
        assert main(["train", *order]) == 2
        assert "data.short_side: got 2" in capsys.readouterr().err
