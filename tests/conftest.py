import os
from pathlib import Path

import pytest
from numbered_video import VARIANTS, write_numbered_video

# As the command line does, which is too late in a process that has loaded torch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real footage that is too large for the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(
            "the shared data lies beside the repository, in ../shared/data, and is not here"
        )
    return SHARED_DATA


@pytest.fixture(scope="session")
def numbered_video(tmp_path_factory):
    """Called with the name of a variant, returns the path of a file of that kind; each is written once."""
    folder = tmp_path_factory.mktemp("numbered")
    written = {}

    def get(name: str) -> Path:
        if name not in written:
            variant = VARIANTS[name]
            written[name] = write_numbered_video(folder / f"{name}{variant.suffix}", variant)
        return written[name]

    return get


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory) -> Path:
    """The manifest of ten small synthetic videos."""
    from videossl.__main__ import main
    from videossl.data.synthetic import render_video

    folder = tmp_path_factory.mktemp("synthetic")
    for seed in range(10):
        render_video(folder / f"{seed}.mp4", seed=seed, seconds=2.5, height=48, width=64)
    assert (
        main(["scan", str(folder), "-o", str(folder / "manifest.parquet"), "--workers", "1"]) == 0
    )
    return folder / "manifest.parquet"


@pytest.fixture(scope="session")
def tinted_videos(tmp_path_factory) -> Path:
    """The manifest of noise in two tints, which are the classes: 12 videos of 12 sources."""
    import numpy as np

    from videossl.__main__ import main
    from videossl.io.pictures import write_video

    folder = tmp_path_factory.mktemp("tinted")
    random = np.random.default_rng(0)
    for label, tint in {"blue": (40, 60, 200), "red": (200, 60, 40)}.items():
        for number in range(6):
            noise = random.integers(-40, 40, (16, 40, 48, 1))
            frames = (np.asarray(tint) + noise).clip(0, 255).astype(np.uint8)
            write_video(folder / label / f"{number}.mp4", frames, frames_per_second=10)
    out = folder / "manifest.parquet"
    arguments = ["scan", str(folder), "-o", str(out), "--labels", "folder", "--workers", "1"]
    assert main(arguments) == 0
    return out


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder up to res3 that was never trained, saved as a run saves it."""
    import torch

    from videossl.engine.checkpoint import save_checkpoint
    from videossl.models.encoder import Encoder, EncoderSpec

    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec("tiny", "res3"), track_stage="res3")
    weights = {f"encoder.{key}": value for key, value in encoder.state_dict().items()}
    state = {"encoder": encoder.describe(), "model": weights}
    return save_checkpoint(
        tmp_path_factory.mktemp("run") / "mine" / "checkpoints", state, step=1, keep=1
    )
