"""Nothing of a user's file is executed, and nothing is written outside of the folder asked for: a hostile file for each."""

import ast
import csv
import json
import os
import pickle
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videossl.__main__ import main
from videossl.data.manifest import read_manifest
from videossl.engine.checkpoint import FORMAT
from videossl.io.index_masks import write_mask

ROOT = Path(__file__).parents[1]
H, W, FRAMES = 48, 64, 3
CONFIG = """
tasks: {arrow_of_time: {crop_size: 32, num_frames: 4, min_motion: 0}}
data: {short_side: 48, videos_per_step: 4, num_workers: 0, val_fraction: 0.4}
train: {steps: 1, log_every: 1, eval_batches: 1, threads_per_process: 1}
"""


class Payload:
    """What a pickle runs when it is read: a shell command that leaves a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path) -> Iterator[Path]:
    """The file that would be there if anything had run."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a file of the user's was executed"


def make_davis(root: Path, *names: str) -> Path:
    for name in names:
        for t in range(FRAMES):
            frame = np.random.default_rng(t).integers(0, 255, (H, W, 3)).astype(np.uint8)
            mask = np.zeros((H, W), np.uint8)
            mask[8:24, 8:24] = 1
            (root / f"JPEGImages/480p/{name}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/2017/val.txt").write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.fixture
def davis(tmp_path) -> Path:
    return make_davis(tmp_path / "davis", "ant")


def refused(capsys, *arguments: object) -> str:
    """What a command said in the one line with which it refused."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if line.startswith("videossl "))
    assert said.rstrip().endswith(line)
    return line


def evil_checkpoint(path: Path, canary: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"format": FORMAT, "config": {}, "model": {}, "step": 1, "x": Payload(canary)}
    torch.save(state, path)
    return path


def test_the_payload_does_run_where_a_pickle_is_trusted(tmp_path):
    path = evil_checkpoint(tmp_path / "step_000000001.pt", tmp_path / "ran")
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("command", ["track", "track-points", "audit", "pretext-eval"])
def test_a_checkpoint_that_is_a_program_is_not_run(tmp_path, davis, canary, capsys, command):
    path = evil_checkpoint(tmp_path / "run/checkpoints/step_000000001.pt", canary)
    data: dict[str, list[object]] = {
        "track": ["--davis", davis],
        "track-points": ["--tapvid", tapvid(tmp_path)],
    }
    given = data.get(command, [])
    for checkpoint in (path, tmp_path / "run"):
        line = refused(
            capsys, command, "--checkpoint", checkpoint, *given, "--out", tmp_path / "out"
        )
        assert "step_000000001.pt" in line


def tapvid(folder: Path) -> Path:
    path = folder / "points.npz"
    video = np.zeros((FRAMES, H, W, 3), np.uint8)
    arrays = {"video": video, "points": np.zeros((1, FRAMES, 2), np.float32)}
    np.savez(path, **arrays, occluded=np.zeros((1, FRAMES), bool))
    return path


def test_training_does_not_resume_from_a_checkpoint_that_is_a_program(
    tmp_path, video_folder, canary, capsys
):
    (tmp_path / "c.yaml").write_text(CONFIG)
    arguments = ["--config", tmp_path / "c.yaml", f"data.manifest={video_folder}"]
    arguments.append(f"out={tmp_path / 'run'}")
    assert main(["train", *map(str, arguments)]) == 0
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step_*.pt")
    evil_checkpoint(checkpoint, canary)
    assert "no checkpoint is sound" in refused(capsys, "train", *arguments)


def test_weights_of_an_image_model_that_are_a_program_are_not_run(tmp_path, davis, canary, capsys):
    pytest.importorskip("torchvision")
    path = tmp_path / "weights.pth"
    torch.save({"conv1.weight": Payload(canary)}, path)
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features/ant.npy", np.zeros((FRAMES, 4, 6, 8), np.float32))
    given = ["--features", tmp_path / "features", "--davis", davis, "-o", tmp_path / "out"]
    baseline = ["--baselines", "torchvision:resnet18", "--weights", path, "--device", "cpu"]
    assert "weights cannot be read" in refused(capsys, "track", *given, *baseline)


YAML_PROGRAMS = [
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/new:os.system ['touch {canary}']",
    "!!python/name:os.system",
    "!!python/module:antigravity",
]


@pytest.mark.parametrize("program", YAML_PROGRAMS)
def test_yaml_that_is_a_program_is_not_run(tmp_path, video_folder, canary, capsys, program):
    value = program.format(canary=canary)
    config = tmp_path / "c.yaml"
    config.write_text(f"{CONFIG}\nseed: {value}\n")
    assert "is not YAML" in refused(capsys, "train", "--config", config, f"out={tmp_path / 'run'}")
    config.write_text(CONFIG)
    line = refused(capsys, "train", "--config", config, f"out={tmp_path / 'run'}", f"seed={value}")
    assert "not YAML" in line
    # The config that lies in a run's folder is a user's file too.
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(f"seed: {value}\n")
    given = ["--config", config, f"out={tmp_path / 'run'}", f"data.manifest={video_folder}"]
    assert "not YAML" in refused(capsys, "train", *given)


def test_features_that_are_objects_are_not_unpickled(tmp_path, davis, canary, capsys):
    (tmp_path / "features").mkdir()
    objects = np.empty((FRAMES, 1, 6, 8), object)
    objects[:] = Payload(canary)
    np.save(tmp_path / "features/ant.npy", objects, allow_pickle=True)
    given = ["--features", tmp_path / "features", "--davis", davis, "--device", "cpu"]
    line = refused(capsys, "track", *given, "--workers", "1", "-o", tmp_path / "out")
    assert "no array of numbers can be read" in line


POSTSCRIPT = """%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 48
%%EndComments
showpage
"""


@pytest.fixture
def ghostscript(tmp_path, monkeypatch, canary) -> None:
    """A `gs` that leaves the canary, first on the path; Pillow has not looked for one yet."""
    from PIL import EpsImagePlugin

    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {canary}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)


def test_the_planted_ghostscript_does_run_where_the_format_is_told_by_content(
    tmp_path, monkeypatch, ghostscript, canary
):
    (tmp_path / "a.jpg").write_text(POSTSCRIPT)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(OSError):
        image.load()
    assert canary.exists()
    canary.unlink()


@pytest.mark.parametrize(
    "place", ["JPEGImages/480p/ant/00001.jpg", "Annotations/480p/ant/00000.png", "first.png"]
)
def test_postscript_in_place_of_a_picture_starts_no_program(
    tmp_path, video_folder, checkpoint, davis, ghostscript, capsys, place
):
    (davis / place).write_text(POSTSCRIPT)
    given = ["--checkpoint", checkpoint, "--device", "cpu", "--workers", "1"]
    data = ["--davis", davis]
    if place == "first.png":
        data = ["--video", video_folder.parent / "0.mp4", "--mask", davis / place]
    assert place in refused(capsys, "track", *given, *data, "-o", tmp_path / "out")
    if place.startswith("Annotations"):
        assert place in refused(
            capsys, "score", davis / "Annotations/480p", *data, "-o", tmp_path / "out"
        )


@pytest.mark.parametrize(
    "place", ["JPEGImages/480p/ant/00001.jpg", "Annotations/480p/ant/00000.png"]
)
def test_a_picture_of_too_many_pixels_is_refused(
    tmp_path, checkpoint, davis, monkeypatch, capsys, place
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W)
    Image.new("L", (2 * W, 2 * H)).save(davis / place)
    given = ["--checkpoint", checkpoint, "--device", "cpu", "--workers", "1", "--davis", davis]
    assert place in refused(capsys, "track", *given, "-o", tmp_path / "out")


@pytest.mark.parametrize("kind", ["pkl", "npz"])
def test_a_point_benchmark_that_is_a_program_is_not_run(tmp_path, checkpoint, canary, capsys, kind):
    path = tmp_path / f"set.{kind}"
    if kind == "pkl":
        path.write_bytes(pickle.dumps({"ant": {"video": Payload(canary)}}))
    else:
        np.savez(path, video=np.array([Payload(canary)], object))
    given = ["--checkpoint", checkpoint, "--tapvid", path, "--out", tmp_path / "out"]
    assert path.name in refused(capsys, "track-points", *given)


def test_tracks_that_are_objects_are_not_unpickled(tmp_path, canary, capsys):
    (tmp_path / "tracks").mkdir()
    objects = np.array([Payload(canary)], object)
    np.savez(tmp_path / "tracks/points.npz", tracks=objects, occluded=objects)
    given = ["--tapvid", tapvid(tmp_path), "--tracks", tmp_path / "tracks"]
    refused(capsys, "track-points", *given, "--out", tmp_path / "out")


def files_outside(root: Path, out: Path) -> dict[str, tuple[int, int]]:
    """All files below `root` that do not lie in `out`, with size and time of change."""
    found = (path for path in root.rglob("*") if path.is_file() and out not in path.parents)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


ODD_NAMES = ["../../etc/passwd", "..", "/etc/passwd", "a/../../b", "x\ny", "C:\\x", ".hidden"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_of_a_davis_list_that_lead_out_are_refused(tmp_path, checkpoint, davis, capsys, name):
    (davis / "ImageSets/2017/val.txt").write_text(f"ant\n{name}\n")
    before = files_outside(tmp_path, tmp_path / "out")
    given = ["--davis", davis, "-o", tmp_path / "out"]
    refused(capsys, "track", "--checkpoint", checkpoint, *given, "--device", "cpu")
    refused(capsys, "score", davis / "Annotations/480p", *given)
    assert files_outside(tmp_path, tmp_path / "out") == before


def test_packing_names_nothing_after_what_a_list_says(tmp_path, video_folder):
    videos = tmp_path / "videos"
    videos.mkdir()
    names = ["..evil.mp4", "=1+1.mp4", "a'b\"<script>.mp4", "../videos/inner.mp4"]
    for name in names:
        (videos / name).write_bytes((video_folder.parent / "0.mp4").read_bytes())
    with (tmp_path / "list.csv").open("w", newline="") as file:
        rows = [(f"videos/{name}", "../../label", "/etc/group") for name in names]
        csv.writer(file).writerows([("path", "label", "group"), *rows])
    out = tmp_path / "packed"
    manifest = tmp_path / "m.parquet"
    assert main(["scan", str(tmp_path / "list.csv"), "-o", str(manifest), "--workers", "1"]) == 0
    before = files_outside(tmp_path, out)
    assert (
        main(["pack", str(manifest), "-o", str(out), "--workers", "1", "--short-side", "32"]) == 0
    )
    assert files_outside(tmp_path, out) == before
    import tarfile

    (shard,) = out.glob("*.tar")
    with tarfile.open(shard) as archive:
        members = archive.getnames()
    assert len(members) == 2 * len(names)
    assert all(re.fullmatch(r"\d{8}-\d{3}\.(mp4|json)", name) for name in members)
    assert all(
        Path(entry.path).parent == out.resolve()
        for entry in read_manifest(out / "manifest.parquet")
    )


def test_what_a_list_says_is_text(tmp_path, canary, capsys):
    command = f"$(touch {canary})"
    text = f'path,label\n"{command}","=cmd|\' /C touch {canary}\'!A0"\n"`touch {canary}`",a\n'
    (tmp_path / "list.csv").write_text(text)
    out = tmp_path / "m.parquet"
    assert main(["scan", str(tmp_path / "list.csv"), "-o", str(out), "--workers", "1"]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err
    (tmp_path / "list.txt").write_text(f"| touch {canary}\n; touch {canary}\n")
    assert main(["scan", str(tmp_path / "list.txt"), "-o", str(out), "--workers", "1"]) in (1, 2)


def test_a_link_in_the_folder_of_results_is_removed_and_not_followed(tmp_path, checkpoint, davis):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "precious.txt").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / "result.json").write_text(json.dumps({"rows": {"mine_step1": {}}}))
    (out / "mine_step1").symlink_to(mine)
    (out / "overlay").symlink_to(mine)
    (out / "table.txt").symlink_to(mine / "precious.txt")
    (out / f".result.{os.getpid()}.partial.json").symlink_to(mine / "precious.txt")
    given = ["--checkpoint", checkpoint, "--davis", davis, "--device", "cpu", "--workers", "1"]
    assert main(["track", *map(str, given), "-o", str(out)]) == 0
    assert [path.name for path in mine.iterdir()] == ["precious.txt"]
    assert (mine / "precious.txt").read_text() == "precious"
    assert (out / "mine_step1/ant").is_dir()
    assert not (out / "mine_step1").is_symlink()


def test_a_link_in_a_folder_to_pack_into_is_not_written_through(tmp_path, video_folder):
    (tmp_path / "precious.txt").write_text("precious")
    out = tmp_path / "packed"
    given = [str(video_folder), "-o", str(out), "--workers", "1", "--short-side", "32"]
    assert main(["pack", *given]) == 0
    (shard,) = out.glob("*.tar")
    packed = shard.read_bytes()
    skipped = f".skipped.{os.getpid()}.partial.jsonl"
    links = (f".{shard.name}.partial", ".shard-000000.rows.json.partial", skipped)
    for name in (shard.name, "manifest.parquet", "shard-000000.rows.json", *links):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(tmp_path / "precious.txt")
    assert main(["pack", *given]) == 0
    assert (tmp_path / "precious.txt").read_text() == "precious"
    assert shard.read_bytes() == packed
    assert not shard.is_symlink()


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags_of(page: Path) -> Tags:
    parser = Tags()
    parser.feed(page.read_text(encoding="ascii"))
    return parser


HOSTILE_NAME = "a\"onload='x' <script>document.title=1<⁄script><img src=x onerror=alert(1)>&amp;"


def assert_harmless(page: Path, *, num_scripts: int) -> None:
    """The page has its own scripts, no handler in any tag, and nothing that it would fetch."""
    tags = tags_of(page).tags
    assert sum(tag == "script" for tag, _ in tags) == num_scripts
    for tag, attributes in tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for source in (attributes.get(name) for name in ("src", "data", "srcset")):
            assert (
                source is None or source.startswith("data:") or "%" in source or ".." not in source
            )
            assert source != "x"


def test_names_in_the_page_of_a_tracking_run_are_text(tmp_path, checkpoint, capsys):
    plain = make_davis(tmp_path / "plain", "ant")
    hostile = make_davis(tmp_path / f"davis {HOSTILE_NAME}", HOSTILE_NAME)
    for root, out in ((plain, tmp_path / "a"), (hostile, tmp_path / f"b{HOSTILE_NAME}")):
        given = ["--checkpoint", checkpoint, "--davis", root, "--device", "cpu", "--workers", "1"]
        assert main(["track", *map(str, given), "-o", str(out)]) == 0
    scripts = sum(tag == "script" for tag, _ in tags_of(tmp_path / "a/index.html").tags)
    page = tmp_path / f"b{HOSTILE_NAME}" / "index.html"
    assert_harmless(page, num_scripts=scripts)
    assert "onerror=alert(1)" in page.read_text()  # shown, as text


# Who may unpickle: the two ends of a pool of our own processes. The third reads arrays without running what is asked for.
PICKLE_READERS = {
    "videossl/workers/pool.py",
    "videossl/workers/process.py",
    "videossl/tracking/point_sets.py",
}
SAFE_YAML = ("safe_load", "safe_dump", "parse", "YAMLError")  # events are no objects yet
PROGRAMS = {"eval", "exec", "compile", "__import__"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute or a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def dangers(path: Path, tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            for name in names & {"dill", "cloudpickle", "joblib", "shelve", "marshal"}:
                yield f"imports {name}"
            names_errors_alone = "videossl/models/encoder_file.py"
            allowed = {ROOT / p for p in (*PICKLE_READERS, names_errors_alone)}
            if "pickle" in names and path not in allowed:
                yield "imports pickle"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
        if name in PROGRAMS or name in ("os.system", "os.popen", "subprocess.getoutput"):
            yield f"calls {name}"
        if name.startswith("subprocess.") and keywords.get("shell", False) is not False:
            yield f"calls {name} with a shell"
        if name.startswith("yaml.") and name.split(".")[1] not in SAFE_YAML:
            yield f"calls {name}"
        if name == "torch.load" and keywords.get("weights_only") is not True:
            yield "calls torch.load without weights_only=True"
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") is not False:
            yield "calls np.load without allow_pickle=False"
        unpickles = re.fullmatch(r"(pickle|cPickle|_pickle)\.(loads?|Unpickler)", name)
        if unpickles and str(path.relative_to(ROOT)) not in PICKLE_READERS:
            yield f"calls {name}"
        if name.endswith("Image.open") and "formats" not in keywords:
            yield f"calls {name} without formats"
        if name.endswith(".extractall") and keywords.get("filter") != "data":
            yield f"calls {name} without filter='data'"
        if name.endswith("import_module") and str(path.relative_to(ROOT)) not in IMPORTERS:
            yield f"calls {name}"


# Own modules by name; --features, which a person types; tasks, which --allow-import allows.
IMPORTERS = {
    "videossl/commands/arguments.py",
    "videossl/pretext/__init__.py",
    "videossl/tracking/given_features.py",
    "videossl/models/architectures.py",
}


def test_no_source_runs_what_a_file_holds():
    found = []
    for path in sorted([*(ROOT / "videossl").rglob("*.py"), *(ROOT / "tools").glob("*.py")]):
        tree = ast.parse(path.read_text())
        found += [f"{path.relative_to(ROOT)} {danger}" for danger in dangers(path, tree)]
    assert found == []


@pytest.mark.parametrize(
    "code",
    [
        "import yaml; yaml.load(x)",
        "import yaml; yaml.unsafe_load(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "import pickle; pickle.loads(x)",
        "from pickle import loads",
        "eval(x)",
        "os.system(x)",
        "subprocess.run(x, shell=True)",
        "np.load(x)",
        "tar.extractall(x)",
        "importlib.import_module(x)",
        "Image.open(x)",
        "PIL.Image.open(x)",
    ],
)
def test_the_check_of_sources_finds_each_danger(code):
    assert list(dangers(ROOT / "videossl/planted.py", ast.parse(code)))
