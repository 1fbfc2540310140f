"""`videossl probe` from the command line: every protocol, what stands beside it, and what a user can get wrong."""

import csv
import functools
import hashlib
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from videossl.__main__ import main
from videossl.engine.checkpoint import save_checkpoint
from videossl.export.loading import load_encoder
from videossl.export.video_encoder import VideoEncoder
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.probe.feature_store import state_digest
from videossl.probe.protocols import Setting, judge_frozen


@pytest.fixture(scope="module")
def run_file(tmp_path_factory) -> Path:
    """A run of small clips, never trained."""
    from videossl.config import Config

    knn = {"num_frames": 2, "seconds_between_frames": 0.2}
    config = Config(
        out="x", tasks={"t": {}}, data={"short_side": 32}, monitor={"knn": knn}
    ).model_dump(mode="json")
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny", "res3"), track_stage="res3")
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state = {"encoder": encoder.describe(), "model": weights, "config": config}
    return save_checkpoint(
        tmp_path_factory.mktemp("run") / "mine" / "checkpoints", state, step=1, keep=1
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def arguments(run_file: Path, manifest: Path, cache: Path, *more: object) -> list[str]:
    given = ["probe", "--checkpoint", run_file, "--manifest", manifest, "--cache", cache]
    return [str(part) for part in [*given, "--clips-per-video", 2, *more]]


SUPERVISED = "supervised from scratch"


@pytest.mark.parametrize("protocol", ["linear", "attentive", "knn", "retrieval", "fewshot"])
def test_a_frozen_protocol_stands_beside_chance_no_training_and_labels(
    run_file, tinted_videos, cache, tmp_path, protocol, capsys, monkeypatch
):
    from videossl.probe import protocols

    brief = functools.partial(protocols.attentive_probe, num_steps=20)
    monkeypatch.setattr(protocols, "attentive_probe", brief)
    out = tmp_path / "out"
    more = ("--protocol", protocol, "--epochs", 2, "-o", out)
    assert main(arguments(run_file, tinted_videos, cache, *more)) == 0
    result = json.loads((out / "result.json").read_text())
    supervised = SUPERVISED + (", all labels" if protocol == "fewshot" else "")
    assert list(result["rows"]) == ["mine_step1", "untrained, seed 0", supervised]
    assert result["split"]["classes"] == ["blue", "red"]
    assert result["checkpoint_sha256"] == hashlib.sha256(run_file.read_bytes()).hexdigest()
    frozen = [row["frozen"] for row in result["rows"].values() if "frozen" in row]
    assert len(frozen) == (3 if protocol == "retrieval" else 2)
    assert all(one["sha256_before"] == one["sha256_after"] for one in frozen)
    # Any features of two tints tell them apart, and the same videos are asked of every row.
    trained = result["rows"]["mine_step1"]
    if protocol == "retrieval":
        assert trained["R@1"] == 1.0
        assert result["chance"]["R@1"] == pytest.approx(0.5, abs=0.2)
    elif protocol == "fewshot":
        assert trained["1-shot"]["mean"] == 1.0
        assert trained["10-shot"] is None
    else:
        assert trained["top1"][0] == 1.0
        assert trained["confusion"][0][1] == trained["confusion"][1][0] == 0
    assert result["chance"].keys() & {"R@50", "balanced_accuracy"}
    table = (out / "table.md").read_text()
    assert table.strip() in capsys.readouterr().out
    assert sum(line.startswith("|") for line in table.splitlines()) == 2 + 3 + 1
    assert "3 test videos: too few to tell" in table
    with Image.open(out / "neighbours.png") as picture:
        assert picture.height > 6 * 72
    assert (out / "confusion.png").exists() == (protocol != "retrieval")


def test_fine_tuning_stands_beside_the_same_recipe_from_scratch(
    run_file, tinted_videos, cache, tmp_path
):
    more = ("--protocol", "finetune", "--epochs", 8, "--batch-size", 4, "-o", tmp_path / "out")
    assert main(arguments(run_file, tinted_videos, cache, *more)) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["rows"]) == ["fine-tuned", "supervised from scratch"]
    assert result["rows"]["fine-tuned"]["top1"][0] == 1.0
    assert result["recipe"]["epochs"] == 8
    with (tmp_path / "out" / "predictions.csv").open() as file:
        protocols = list(csv.DictReader(file))
    assert len(protocols) == result["split"]["test"]["videos"]
    assert all(row["label"] == row["answer"] for row in protocols)


def test_features_are_taken_from_the_cache_of_another_protocol(
    run_file, tinted_videos, cache, tmp_path, monkeypatch
):
    brief = ("--no-supervised", "--protocol")
    first = arguments(run_file, tinted_videos, cache, *brief, "knn", "-o", tmp_path / "a")
    assert main(first) == 0
    from videossl.probe import feature_store as module

    monkeypatch.setattr(module, "video_features", None)  # whoever computes fails
    second = arguments(run_file, tinted_videos, cache, *brief, "retrieval", "-o", tmp_path / "b")
    assert main(second) == 0


def test_an_encoder_that_changes_while_it_is_probed_is_found_out(run_file, tinted_videos, tmp_path):
    class Drifting(VideoEncoder):
        def forward(self, video):
            with torch.no_grad():
                next(self.encoder.parameters()).view(-1)[0] += 0.01
            return super().forward(video)

    from videossl.data.manifest import read_manifest
    from videossl.probe.labelled_split import split_labelled

    loaded = load_encoder(run_file)
    drifting = Drifting(loaded.encoder, loaded.clip)
    before = state_digest(drifting)
    manifest = read_manifest(tinted_videos)
    split = split_labelled(manifest, seed=0)
    setting = Setting(manifest, split, 1, torch.device("cpu"), tmp_path, 0)
    with pytest.raises(RuntimeError, match="frozen encoder changed"):
        judge_frozen("knn", drifting, setting, why="t")
    assert state_digest(drifting) != before


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--clips-per-video", 0), "--clips-per-video is 0: it must be at least 1"),
        (("--epochs", 0), "--epochs is 0"),
        (("--lr", -1), "--lr is -1.0"),
        (("--stage", "res5"), "stage 'res5' is not in this encoder; it has res2, res3"),
        (("--split-file", "nowhere.csv"), "--split-file nowhere.csv: no such file"),
        (("--manifest", "nowhere.parquet"), "no manifest at nowhere.parquet"),
        (("--checkpoint", "nowhere"), "nowhere does not exist"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    run_file, tinted_videos, cache, tmp_path, more, says, capsys
):
    given = arguments(run_file, tinted_videos, cache, "--protocol", "knn", "-o", tmp_path / "out")
    assert main([*given, *map(str, more)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "videossl probe:" in line]
    assert says in line


def test_a_mistake_costs_no_result_that_is_there(run_file, tinted_videos, cache, tmp_path):
    given = arguments(run_file, tinted_videos, cache, "--protocol", "knn", "--no-supervised")
    out = tmp_path / "out"
    assert main([*given, "-o", str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main([*given, "-o", str(out), "--stage", "res9"]) == 2
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_cannot_be_drawn_costs_the_picture_alone(
    run_file, tinted_videos, cache, tmp_path, monkeypatch, caplog
):
    from videossl.errors import VideoDecodeError
    from videossl.probe import probe_report

    def gone(*args):
        raise VideoDecodeError("a.mp4", "pyav", "no such file")

    monkeypatch.setattr(probe_report, "draw_neighbours", gone)
    given = arguments(run_file, tinted_videos, cache, "--protocol", "knn", "--no-supervised")
    assert main([*given, "-o", str(tmp_path)]) == 0
    assert "neighbours.png is left out: a.mp4" in caplog.text
    assert (
        json.loads((tmp_path / "result.json").read_text())["rows"]["mine_step1"]["top1"][0] == 1.0
    )
    assert (tmp_path / "confusion.png").is_file()


@pytest.mark.parametrize("classes", [["$\\foo$", "b"], [f"class {i}" for i in range(400)]])
def test_any_classes_can_be_drawn(tmp_path, classes):
    from videossl.probe.probe_report import draw_confusion

    draw_confusion(tmp_path / "c.png", torch.eye(len(classes)).long().tolist(), classes)
    with Image.open(tmp_path / "c.png") as picture:
        assert max(picture.size) <= 3100


def test_a_checkpoint_that_goes_meanwhile_is_not_missed(
    run_file, tinted_videos, cache, tmp_path, monkeypatch
):
    from videossl.probe import protocols

    copied = tmp_path / "step_00000001.pt"
    copied.write_bytes(run_file.read_bytes())
    judge = protocols.frozen_rows

    def judged(*args, **options):
        copied.unlink()  # as a run that still trains does
        return judge(*args, **options)

    monkeypatch.setattr(protocols, "frozen_rows", judged)
    given = arguments(copied, tinted_videos, cache, "--protocol", "knn", "--no-supervised")
    assert main([*given, "-o", str(tmp_path / "out")]) == 0


def test_an_encoder_of_broken_weights_is_refused(tinted_videos, tmp_path, capsys):
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny", "res2"))
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    weights["encoder.stem.conv.weight"] = weights["encoder.stem.conv.weight"] * float("nan")
    state = {"encoder": encoder.describe(), "model": weights}
    path = save_checkpoint(tmp_path / "checkpoints", state, step=1, keep=1)
    given = arguments(path, tinted_videos, tmp_path / "cache", "--protocol", "retrieval")
    assert main([*given, "-o", str(tmp_path / "out")]) == 2
    assert "features of it are not finite" in capsys.readouterr().err


def test_videos_without_labels_are_refused(run_file, video_folder, cache, tmp_path, capsys):
    given = arguments(run_file, video_folder, cache, "--protocol", "knn", "-o", tmp_path / "out")
    assert main(given) == 2
    assert "scan with --labels folder" in capsys.readouterr().err


def test_a_real_set_of_actions_is_probed_by_its_own_split(run_file, shared_data, cache, tmp_path):
    actions = shared_data / "videos" / "actions" / "arid6"
    manifest, chosen = tmp_path / "m.parquet", tmp_path / "list.csv"
    lines = (actions / "labels.csv").read_text().splitlines()
    # Three videos of each class and side are enough to see that all hangs together.
    kept: dict[tuple[str, str], list[str]] = {}
    for line in lines[1:]:
        kept.setdefault((line.split(",")[1], line.split(",")[2]), []).append(line)
    few = [line for members in kept.values() for line in members[:3]]
    protocols = [
        "path,label,group",
        *(f"{actions / f.split(',')[0]},{f.split(',')[1]},{f.split(',')[3]}" for f in few),
    ]
    chosen.write_text("\n".join(protocols) + "\n")
    assert main(["scan", str(chosen), "-o", str(manifest), "--workers", "2"]) == 0
    more = ("--protocol", "linear", "--no-supervised", "-o", tmp_path / "out")
    own = ("--split-file", actions / "labels.csv")
    assert main(arguments(run_file, manifest, cache, *more, *own)) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["split"]["test"]["videos"] == 18
    assert len(result["split"]["classes"]) == 6
    assert result["split"]["notes"]  # a class of one source: said
    assert 0 <= result["rows"]["mine_step1"]["top1"][0] <= 1
