"""`videossl embed`: one row for each video, however often it was stopped and by however many processes it was made."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import videossl
from videossl.__main__ import main
from videossl.data.entry import write_manifest
from videossl.data.manifest import read_manifest
from videossl.engine.checkpoint import save_checkpoint
from videossl.export.video_encoder import ClipForm, VideoEncoder, write_encoder_file
from videossl.models.encoder import Encoder, EncoderSpec
from videossl.models.encoder_file import weights_digest
from videossl.probe import feature_store
from videossl.probe.embedding import ClipReader


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small encoder that sees few and small frames."""
    torch.manual_seed(0)
    encoder = VideoEncoder(Encoder(EncoderSpec("tiny", "res4")), ClipForm(3, 0.2, 36, 32)).eval()
    path = tmp_path_factory.mktemp("encoder") / "e.safetensors"
    write_encoder_file(path, encoder)
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory, video_folder):
    """Ten sound videos, one that the scan found broken, and one that was damaged since."""
    folder = tmp_path_factory.mktemp("videos")
    for path in video_folder.parent.glob("*.mp4"):
        shutil.copy(path, folder)
    shutil.copy(folder / "0.mp4", folder / "late.mp4")
    (folder / "broken.mp4").write_bytes(b"this is no video")
    (folder / "list.csv").write_text(
        "path,label\n" + "".join(f"{p.name},label {p.stem}\n" for p in sorted(folder.glob("*.mp4")))
    )
    path = folder / "manifest.parquet"
    arguments = [str(folder / "list.csv"), "-o", str(path), "--workers", "1"]
    assert main(["scan", *arguments]) == 0
    (folder / "late.mp4").write_bytes(b"gone bad")
    return path


def embed(manifest, source, out, *more) -> int:
    given = [str(manifest), "--checkpoint", str(source), "-o", str(out), "--clips-per-video", "2"]
    return main(["embed", *given, "--device", "cpu", *more])


@pytest.fixture(scope="module")
def whole(manifest, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "features.parquet"
    assert embed(manifest, source, out) == 0
    return out


def test_each_video_has_the_mean_feature_of_its_clips(manifest, source, whole):
    encoder, entries = videossl.load_encoder(source), read_manifest(manifest)
    reader = ClipReader(entries, encoder.clip, num_clips=2)
    rows = pq.read_table(whole).to_pylist()
    assert [row["path"] for row in rows] == entries.strings("path")
    assert [row["label"] for row in rows] == entries.strings("label")
    assert [row["group"] for row in rows] == entries.strings("group")
    sound = [place for place, row in enumerate(rows) if row["status"] == "ok"]
    assert len(sound) == 10
    for place in sound:
        with torch.no_grad():
            expected = encoder(reader.read(place)).mean(0)
        np.testing.assert_allclose(rows[place]["feature"], expected, atol=1e-5, rtol=1e-4)
        assert rows[place]["reason"] == ""
    features = np.array([rows[place]["feature"] for place in sound])
    assert len(np.unique(features.round(4), axis=0)) == 10


def test_videos_that_fail_have_a_reason_and_no_feature(whole):
    rows = {row["path"].split("/")[-1]: row for row in pq.read_table(whole).to_pylist()}
    for name in ("broken.mp4", "late.mp4"):
        assert rows[name]["feature"] is None
        assert rows[name]["status"] == "broken"
        assert len(rows[name]["reason"]) > 5
    assert len(rows) == 12


def test_the_file_says_what_made_it(source, whole):
    schema = pq.read_schema(whole)
    said = json.loads(schema.metadata[b"videossl"])
    assert said["encoder"] == videossl.load_encoder(source).describe()
    assert said["clips_per_video"] == 2
    assert (
        schema.field("feature").type.list_size,
        str(schema.field("feature").type.value_type),
    ) == (
        96,
        "float",
    )
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]


def test_two_processes_make_the_same_file(manifest, source, whole, tmp_path):
    code = (
        "import sys; from videossl.probe import feature_store; feature_store.CHUNK = 3; "
        "from videossl.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / "small_parts.py").write_text(code)
    out = tmp_path / "two.parquet"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += [str(tmp_path / "small_parts.py"), "embed", str(manifest), "-o", str(out)]
    command += ["--checkpoint", str(source), "--clips-per-video", "2", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "videos (1/2 of all): 6/6" in done.stderr
    assert pq.read_table(out).equals(pq.read_table(whole), check_metadata=True)
    assert not list(tmp_path.glob("*.parts"))


def test_a_stopped_command_goes_on_where_it_was(
    manifest, source, whole, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(feature_store, "CHUNK", 3)
    out = tmp_path / "features.parquet"
    embedded = []
    original = feature_store.video_features

    def stopped_at(count):
        def video_features(encoder, reader, rows, **settings):
            for one in original(encoder, reader, rows, **settings):
                embedded.append(one.row)
                if len(embedded) == count:
                    raise KeyboardInterrupt
                yield one

        return video_features

    monkeypatch.setattr(feature_store, "video_features", stopped_at(8))
    assert embed(manifest, source, out) == 130
    assert not out.exists()
    parts = sorted(path.name for path in (tmp_path / "features.parquet.parts").iterdir())
    assert parts == ["000000000.parquet", "000000003.parquet", "settings.json"]
    embedded.clear()
    monkeypatch.setattr(feature_store, "video_features", stopped_at(-1))
    caplog.clear()
    assert embed(manifest, source, out) == 0
    assert embedded == [6, 7, 8, 9, 10, 11]
    assert "going on, 2 of 4 parts are left" in caplog.text
    assert pq.read_table(out).equals(pq.read_table(whole), check_metadata=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_a_damaged_part_is_made_again(manifest, source, whole, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(feature_store, "CHUNK", 6)
    out = tmp_path / "features.parquet"
    monkeypatch.setattr(feature_store.FeatureTable, "_join", lambda *_: 1 / 0)
    embed(manifest, source, out)
    monkeypatch.undo()
    monkeypatch.setattr(feature_store, "CHUNK", 6)
    part = tmp_path / "features.parquet.parts/000000006.parquet"
    part.write_bytes(part.read_bytes()[:200])
    assert embed(manifest, source, out) == 0
    assert "000000006.parquet is damaged" in caplog.text
    assert pq.read_table(out).equals(pq.read_table(whole))


def test_a_finished_file_is_left_as_it_is(manifest, source, whole, caplog, capsys):
    before = whole.stat().st_mtime_ns
    assert embed(manifest, source, whole, "--json") == 0
    assert whole.stat().st_mtime_ns == before
    assert "nothing to do" in caplog.text
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["broken"], found["channels"]) == (10, 2, 96)


@pytest.mark.parametrize("state", ["finished", "stopped"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--stage", "res2"], "encoder.stage was 'res4', is 'res2'"),
        (["--clips-per-video", "3"], "clips_per_video was 2, is 3"),
        (["--checkpoint", "{other}"], "weights_sha256 was"),
    ],
)
def test_other_settings_are_refused_in_one_line(
    manifest, source, whole, tmp_path, capsys, state, change, says
):
    out = tmp_path / "features.parquet"
    if state == "finished":
        shutil.copy(whole, out)
    else:
        settings = json.loads(pq.read_schema(whole).metadata[b"videossl"])
        (tmp_path / "features.parquet.parts").mkdir()
        (tmp_path / "features.parquet.parts/settings.json").write_text(json.dumps(settings))
    other = tmp_path / "other.safetensors"
    torch.manual_seed(1)
    clip = videossl.load_encoder(source).clip
    write_encoder_file(other, VideoEncoder(Encoder(EncoderSpec("tiny", "res4")), clip))
    assert embed(manifest, source, out, *(c.format(other=other) for c in change)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert says in error
    assert "is of other settings" in error


@pytest.mark.parametrize("point", ["naming", "removal"])
def test_a_command_killed_at_its_first_or_last_file_can_be_given_again(
    manifest, source, whole, tmp_path, point
):
    """SIGKILL before the settings have their name, and while the parts are removed."""
    out = tmp_path / "features.parquet"
    at = ("replace", "to", "before") if point == "naming" else ("unlink", "path", "after")
    function, name, moment = at
    code = (
        f"import os, pathlib, sys; done = os.{function}\n"
        "def kill(path, to='', **more):\n"
        f"    is_it = str({name}).endswith('settings.json')\n"
        f"    is_it and '{moment}' == 'before' and os.kill(os.getpid(), 9)\n"
        "    done(path, *([to] if to else []), **more)\n"
        "    is_it and os.kill(os.getpid(), 9)\n"
        f"os.{function} = kill\n"
    )
    code += "from videossl.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "embed", str(manifest), "-o", str(out)]
    command += ["--checkpoint", str(source), "--clips-per-video", "2", "--device", "cpu"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -9
    assert (tmp_path / "features.parquet.parts").exists()
    assert embed(manifest, source, out) == 0
    assert pq.read_table(out).equals(pq.read_table(whole), check_metadata=True)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


# Rank 0 saves a newer checkpoint once it has loaded one, and takes its time over the settings; rank 1 looks meanwhile.
LATE_RANK = """
import os, shutil, sys, time
from pathlib import Path
from videossl.probe.feature_store import FeatureTable
from videossl.export import loading
run, newer, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
load, replace, look = loading.load, Path.replace, FeatureTable.is_finished
parts, looked = out.with_name(out.name + ".parts"), out.with_name("looked")

def wait(is_there, seconds):
    until = time.monotonic() + seconds
    while not is_there() and time.monotonic() < until:
        time.sleep(0.05)

def first(source, **settings):
    found = load(source, **settings)
    shutil.copy(newer, run / "checkpoints/unfinished")
    replace(run / "checkpoints/unfinished", run / "checkpoints/step_000002.pt")
    return found

def slow(path, to):
    if Path(to).name == "settings.json":
        wait(looked.exists, 3)
    return replace(path, to)

def second(source, **settings):
    wait((run / "checkpoints/step_000002.pt").exists, 60)
    return load(source, **settings)

def late(table):
    wait(lambda: parts.exists() and any(parts.iterdir()), 60)
    try:
        return look(table)
    finally:
        looked.touch()

if os.environ["RANK"] == "0":
    loading.load, Path.replace = first, slow
else:
    loading.load, FeatureTable.is_finished = second, late
from videossl.__main__ import main
sys.exit(main(sys.argv[4:]))
"""


def under_torchrun(script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_ranks_go_by_what_the_first_one_finds(manifest, checkpoint, tmp_path):
    """A run that still trains has a newer checkpoint for the rank that looks a moment later."""
    torch.manual_seed(3)
    encoder = Encoder(EncoderSpec("tiny", "res3"))
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state = {"encoder": encoder.describe(), "model": weights}
    newer = save_checkpoint(tmp_path / "newer", state, step=2, keep=1)
    run, out = tmp_path / "run", tmp_path / "features.parquet"
    (run / "checkpoints").mkdir(parents=True)
    used = shutil.copy(checkpoint, run / "checkpoints/step_000001.pt")
    (tmp_path / "late_rank.py").write_text(LATE_RANK)
    given = ["embed", manifest, "--checkpoint", run, "-o", out, "--clips-per-video", "1"]
    done = under_torchrun(tmp_path / "late_rank.py", run, newer, out, *given, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    digest = json.loads(pq.read_schema(out).metadata[b"videossl"])["weights_sha256"]
    assert digest == weights_digest(videossl.load_encoder(used).encoder.state_dict())
    assert (run / "checkpoints/step_000002.pt").exists()


@pytest.mark.slow
def test_ranks_with_other_videos_are_refused(manifest, source, tmp_path):
    write_manifest([], tmp_path / "manifest.parquet")
    (tmp_path / "own_manifest.py").write_text(
        "import os, sys; from videossl.__main__ import main\n"
        "sys.exit(main(['embed', sys.argv[1 + int(os.environ['RANK'])], *sys.argv[3:]]))"
    )
    given = ["--checkpoint", source, "-o", tmp_path / "f.parquet", "--device", "cpu"]
    script = tmp_path / "own_manifest.py"
    done = under_torchrun(script, manifest, tmp_path / "manifest.parquet", *given)
    assert done.returncode != 0
    assert "the processes read different weights or manifests" in done.stderr
    assert not (tmp_path / "f.parquet").exists()


@pytest.mark.parametrize("content", [b"mine", None])
def test_files_of_others_are_left_alone(manifest, source, tmp_path, capsys, content):
    out = tmp_path / "mine.parquet"
    if content is None:
        write_manifest([], out)
    else:
        out.write_bytes(content)
    before = out.read_bytes()
    assert embed(manifest, source, out) == 2
    assert "is no file of features" in capsys.readouterr().err
    assert out.read_bytes() == before
    (tmp_path / "x.parquet.parts").mkdir()
    (tmp_path / "x.parquet.parts/note.txt").write_text("mine")
    assert embed(manifest, source, tmp_path / "x.parquet") == 2
    assert "holds files of something else" in capsys.readouterr().err


def test_features_that_are_not_finite_are_a_reason(manifest, source, tmp_path, capsys):
    encoder = videossl.load_encoder(source)
    with torch.no_grad():
        encoder.encoder.stem.conv.weight.fill_(float("nan"))
    write_encoder_file(tmp_path / "nan.safetensors", encoder)
    out = tmp_path / "features.parquet"
    assert embed(manifest, tmp_path / "nan.safetensors", out) == 1
    assert "every video failed" in capsys.readouterr().err
    rows = pq.read_table(out).to_pylist()
    assert all(row["feature"] is None for row in rows)
    assert {row["reason"] for row in rows} >= {"the encoder's features of it are not finite"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--clips-per-video", "0"], "clips per video must be at least 1"),
        (["--stage", "res5"], "it has res2, res3, res4"),
        (["--checkpoint", "/none.pt"], "/none.pt does not exist"),
        (["-o", "/proc/features.parquet"], "cannot be written"),
    ],
)
def test_bad_input_fails_in_one_line(manifest, source, tmp_path, capsys, arguments, says):
    assert embed(manifest, source, tmp_path / "f.parquet", *arguments) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_real_videos_are_embedded(shared_data, checkpoint, tmp_path):
    """Mixed footage with the clip that a run has by default, as a user would ask for it."""
    videos = sorted((shared_data / "videos/unlabelled").iterdir())[:6]
    path, out = tmp_path / "manifest.parquet", tmp_path / "features.parquet"
    assert main(["scan", *map(str, videos), "-o", str(path), "--workers", "1"]) == 0
    assert embed(path, checkpoint, out) == 0
    rows = pq.read_table(out).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 6
    features = torch.tensor([row["feature"] for row in rows])
    assert torch.pdist(features).min() > 0.05  # no two videos alike
    encoder, entries = videossl.load_encoder(checkpoint), read_manifest(path)
    frames = ClipReader(entries, encoder.clip, num_clips=2).read(4)
    with torch.no_grad():
        torch.testing.assert_close(features[4], encoder(frames).mean(0), atol=1e-5, rtol=1e-4)
