"""tools/compare_features.py: a row is used again only if it would come out the same."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videossl.engine.checkpoint import save_checkpoint
from videossl.masks import write_mask
from videossl.models.encoder import Encoder, EncoderSpec

TOOL = Path(__file__).parents[1] / "tools/compare_features.py"


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    root, noise = tmp_path / "davis", np.random.default_rng(0)
    mask = np.zeros((32, 48), np.uint8)
    mask[8:20, 10:30] = 1
    for name in ("ant", "bee"):
        (root / f"JPEGImages/480p/{name}").mkdir(parents=True)
        for t in range(3):
            frame = Image.fromarray(noise.integers(0, 255, (32, 48, 3)).astype(np.uint8))
            frame.save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg")
            write_mask(root / f"Annotations/480p/{name}/{t:05d}.png", mask)
    (root / "ImageSets/2017").mkdir(parents=True)
    (root / "ImageSets/2017/val.txt").write_text("ant\nbee\n")
    return root


@pytest.fixture
def compare(
    davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path, str], list[str]]:
    """Runs the tool with one row, and says which sequences were tracked for it."""
    spec = importlib.util.spec_from_file_location("compare_features", TOOL)
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "variants", lambda args: [("res3", "res3", {"short_side": "none"})])
    monkeypatch.setattr(tool, "num_cores", lambda: 1)
    original, tracked = tool.track_row, []

    def counted(row: object, footages: list, folder: Path, **more: object) -> object:
        tracked.extend(footage.name for footage in footages)
        return original(row, footages, folder)

    monkeypatch.setattr(tool, "track_row", counted)

    def run(checkpoint: Path, sequences: str) -> list[str]:
        tracked.clear()
        given = ["--checkpoint", str(checkpoint), "--davis", str(davis), "--sequences", sequences]
        monkeypatch.setattr("sys.argv", ["tool", *given, "-o", str(tmp_path / "out")])
        tool.main()
        return list(tracked)

    return run


def test_a_row_of_another_checkpoint_or_other_sequences_is_made_again(
    compare: Callable[[Path, str], list[str]], checkpoint: Path, tmp_path: Path
) -> None:
    assert compare(checkpoint, "ant") == ["ant"]
    assert compare(checkpoint, "ant") == []
    assert compare(checkpoint, "bee") == ["bee"]
    assert not (tmp_path / "out/res3/ant").exists()
    torch.manual_seed(1)
    encoder = Encoder(EncoderSpec("tiny", "res3"), track_stage="res3")
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state = {"encoder": encoder.describe(), "model": weights}
    other = save_checkpoint(tmp_path / "other", state, step=1, keep=1)
    assert compare(other, "bee") == ["bee"]
    (tmp_path / "out/res3/result.json").write_text("{}")  # stopped
    assert compare(other, "bee") == ["bee"]
