"""The documentation: it builds without a warning, and every command and program that a guide shows is run.

Guides are the pages of GUIDES: each of their blocks runs in a world of its own, with small videos in the place of /data and
fewer steps. RECORDS are pages of measurements: their commands took minutes to hours and have tests of their own; here they
must name files that exist and be understood by the command.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from videossl.__main__ import COMMANDS, main
from videossl.commands.arguments import parse

ROOT = Path(__file__).parents[1]
GUIDES = (
    "README.md",
    "docs/first_five_minutes.md",
    "docs/your_videos.md",
    "docs/several_gpus.md",
    "docs/add_a_task.md",
    "docs/probes.md",
    "docs/use_the_encoder.md",
    "docs/tracking.md",
)
RECORDS = (
    "docs/audit.md",
    "docs/distributed.md",
    "docs/mutual_information.md",
    "docs/performance.md",
    "docs/results.md",
    "docs/scaling.md",
    "docs/tracking_ablations.md",
)
# What is not run here, and where it is.
ELSEWHERE = {
    "bash tools/demo.sh": "test_the_tour_of_the_readme, slow",
    "bash tools/test.sh": "this is it",
    "pip install": "tests/test_release.py installs; tools/setup.sh before every run of the tests",
    "python3 -m venv": "the same",
    "hadolint": "the same",
    "docker": "tests/test_docker.py reads the file; building an image takes a builder and 8 GB",
    "tensorboard": "shows what tests/test_logger.py reads back",
    "sbatch": "tests/test_slurm.py",
    "videossl audit": "tests/test_audit_command.py: three tasks take minutes, here they must be understood",
}
# Fewer steps, smaller pictures: appended to a command that a guide shows.
SHORT_TRAINING = (
    *("train.steps=2", "train.log_every=1", "train.save_every=2", "train.eval_every=2"),
    *("train.eval_batches=1", "data.videos_per_step=2", "data.num_workers=0"),
    *("data.short_side=48", "data.val_fraction=0.3", "monitor.knn.every=2"),
    *("monitor.tracking.every=2", "monitor.tracking.max_frames=3"),
)
SMALL_TASKS = (
    "tasks.order_verification.crop_size=32",
    "tasks.arrow_of_time.crop_size=32",
    "tasks.colorization.crop_size=48",
    "tasks.colorization.frame_jitter=4",
)
SHORT = {
    "scan": "--workers 1",
    "pack": "--workers 1",
    "pretext-eval": "--clips-per-video 1",
    "probe": "--clips-per-video 1 --epochs 1",
    "detect": "--steps 1 --min-size 48 --batch-size 1",
    "track": "--set short_side=64",
    "synthesize": "--videos 10 --seconds 2 --sequences 1",
}


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()
    for match in re.finditer(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield Block(page, text[: match.start()].count("\n") + 1, match[1], match[2])


def commands(block: Block) -> list[str]:
    """The lines of a shell block, continued ones joined, comments and what only sets up a shell dropped."""
    joined = block.text.replace("\\\n", " ")
    found = [line.split("  #")[0].split(" # ")[0].strip() for line in joined.splitlines()]
    return [line for line in found if line and not line.startswith("#")]


def of_language(pages: tuple[str, ...], language: str) -> list[Block]:
    return [block for page in pages for block in blocks(page) if block.language == language]


def is_record(block: Block) -> bool:
    """Measurements on the real videos that lie beside a checkout, also where a guide quotes them."""
    return block.page in RECORDS or "../shared/" in block.text


SHELL = of_language((*GUIDES, *RECORDS), "bash")


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


def arguments_of(command: str) -> list[str] | None:
    """What `videossl` gets; None for a command that is another program's."""
    words = shlex.split(command)
    if words[0] == "videossl":
        return words[1:]
    if words[0] == "torchrun" and "videossl" in words:
        return words[words.index("videossl") + 1 :]
    return None


def is_elsewhere(command: str) -> bool:
    return any(command.startswith(known) for known in ELSEWHERE)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tinted_videos) -> Path:
    """A folder in which a reader of the guides might stand: videos, labels, a DAVIS tree, a run, its manifests."""
    import test_detection
    import torch
    from torchvision.models.video import r3d_18

    folder = tmp_path_factory.mktemp("world")
    data = folder / "data"
    assert main(["synthesize", "-o", str(data / "made"), *SHORT["synthesize"].split()]) == 0
    (data / "made" / "videos").rename(data / "videos")
    (data / "made" / "davis").rename(data / "DAVIS")
    shutil.copytree(tinted_videos.parent, data / "classes", ignore=lambda *_: ["manifest.parquet"])
    test_detection.write_voc(data / "VOC2007", {"trainval": 2, "test": 2})
    torch.save(r3d_18(num_classes=3).state_dict(), data / "r3d_18.pth")
    sequence = next((data / "DAVIS" / "JPEGImages" / "480p").iterdir())
    for part in ("JPEGImages", "Annotations"):
        for path in sorted((data / "DAVIS" / part / "480p" / sequence.name).iterdir())[6:]:
            path.unlink()
    frames = [Image.open(path).convert("RGB") for path in sorted(sequence.iterdir())[:5]]
    import numpy as np

    from videossl.io.pictures import write_video

    write_video(folder / "mine.mp4", [np.asarray(f) for f in frames], frames_per_second=8)
    masks = data / "DAVIS" / "Annotations" / "480p" / sequence.name
    shutil.copy(sorted(masks.iterdir())[0], folder / "first.png")
    (folder / "my_net.py").write_text(
        "import torch\n\n\ndef encode(frames):\n    return torch.nn.functional.avg_pool2d(frames.float(), 8)\n"
    )
    (folder / "my_tasks").mkdir()
    (task,) = of_language(("docs/add_a_task.md",), "python")
    (folder / "my_tasks" / "brightness.py").write_text(task.text)
    for name in ("configs", "tools"):
        (folder / name).symlink_to(ROOT / name)
    with standing_in(folder):
        for command in (
            "videossl scan /data/videos -o videos.parquet",
            "videossl pack videos.parquet -o packed --short-side 144 --fps 15",
            "videossl scan /data/classes -o labelled.parquet --labels folder",
            "videossl train --config configs/real_small.yaml data.manifest=videos.parquet out=runs/mine",
        ):
            run(command)
    return folder


@pytest.fixture(scope="module")
def run_before() -> set[str]:
    """Commands that an earlier block has run: what they make stands in the world, or nobody asks for it."""
    return set()


class standing_in:
    """The working folder, for a while."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before = folder, Path.cwd()

    def __enter__(self) -> None:
        os.chdir(self.folder)

    def __exit__(self, *exception: object) -> None:
        os.chdir(self.before)


def run(command: str) -> None:
    """One command of a guide, in this process, in the current folder."""
    words = arguments_of(command)
    assert words is not None, f"{command!r} is neither run nor listed in ELSEWHERE"
    here = Path.cwd()
    words = [re.sub(r"(?<![\w.])/(data|shared)/", rf"{here}/\1/", word) for word in words]
    name = words[0]
    if name == "train":
        words = shortened_training(words)
    if name == "pack":
        shutil.rmtree(words[words.index("-o") + 1], ignore_errors=True)
    if "--set" not in words:
        words += SHORT.get(name, "").split()
    assert main(words) in ((0, 1) if name == "doctor" else (0,)), " ".join(words)


def shortened_training(words: list[str]) -> list[str]:
    """Fewer steps; a folder of an earlier command of the guide makes place, since its config differs."""
    if "--settings" in words:
        return words
    out = next(word.removeprefix("out=") for word in words if word.startswith("out="))
    shutil.rmtree(out, ignore_errors=True)
    given = {word.split("=")[0] for word in words}
    extra = [word for word in SHORT_TRAINING if word.split("=")[0] not in given]
    if "tasks" not in given:
        extra += SMALL_TASKS
    flags = [word for word in words if word in ("--dry-run", "--allow-import")]
    return [word for word in words if word not in flags] + extra + flags


@pytest.mark.parametrize("block", [b for b in SHELL if not is_record(b)], ids=named)
def test_every_command_of_a_guide_runs(block, world, run_before, tmp_path, monkeypatch):
    here = tmp_path / "here"
    shutil.copytree(world, here, symlinks=True)
    monkeypatch.setenv("VIDEOSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(here))
    with standing_in(here):
        for command in commands(block):
            if (words := arguments_of(command)) is not None:
                assert parse(words, COMMANDS).command == words[0]
            if not is_elsewhere(command) and command not in run_before:
                run(command)
                run_before.add(command)


@pytest.mark.parametrize("block", of_language(GUIDES, "python"), ids=named)
def test_every_program_of_a_guide_runs(block, world, capsys):
    with standing_in(world):
        exec(compile(block.text, named(block), "exec"), {"__name__": "guide"})


@pytest.mark.parametrize("block", [b for b in SHELL if is_record(b)], ids=named)
def test_every_command_of_a_record_is_understood(block):
    for command in commands(block):
        words = shlex.split(command)
        while "=" in words[0]:  # OMP_NUM_THREADS=1
            words = words[1:]
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), command
            options = {word.split("=")[0] for word in words if word.startswith("--")}
            text = (ROOT / words[1]).read_text()
            assert all(f'"{option}"' in text for option in options), command
        elif (given := arguments_of(" ".join(map(shlex.quote, words)))) is not None:
            if "..." in given:
                assert given[0] in COMMANDS
            else:
                assert parse(given, COMMANDS).command == given[0]
        else:
            assert is_elsewhere(" ".join(words)), command


def test_every_page_is_in_the_navigation_or_the_build_fails():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    nav = (ROOT / "docs" / "mkdocs.yml").read_text()
    assert {page for page in pages if f" {page}\n" not in nav} == set()
    known = {Path(page).name for page in (*GUIDES, *RECORDS)}
    with_commands = {p.name for p in (ROOT / "docs").glob("*.md") if "```bash" in p.read_text()}
    assert with_commands <= known


def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("zensical")
    # A copy: it writes nowhere but beside its configuration.
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("site"))
    (tmp_path / "videossl").symlink_to(ROOT / "videossl")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", "docs/mkdocs.yml"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "docs" / "site" / "api.html").read_text()
    assert "An encoder with its preprocessing inside" in api  # docstrings are there
    addresses = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)', api)
    assert addresses == []  # opens without a network


@pytest.mark.slow
def test_the_tour_of_the_readme(tmp_path):
    """`bash tools/demo.sh` in a clone, with this environment."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    (clone / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (clone / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    # Else it would be installed from this clone, and its owner's checkout no more.
    shutil.copy(clone / "pyproject.toml", clone / ".venv/installed")
    subprocess.run(["bash", "tools/demo.sh"], cwd=clone, check=True)
    assert (clone / "runs/demo/tracking/index.html").is_file()
