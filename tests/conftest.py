from pathlib import Path

import pytest
from numbered_video import VARIANTS, write_numbered_video

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
