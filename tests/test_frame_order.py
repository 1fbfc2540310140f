"""The order of files that are named after frames."""

from pathlib import Path

import pytest

from videossl.io.pictures import in_frame_order


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "2", "0"], ["0", "2", "10"]),
        (["00010", "00002"], ["00002", "00010"]),
        (["frame10", "frame2"], ["frame2", "frame10"]),
        (["b", "10", "2"], ["2", "10", "b"]),
        ([], []),
    ],
)
def test_numbers_come_by_value_wherever_they_stand_in_a_name(
    names: list[str], expected: list[str]
) -> None:
    paths = [Path("some") / f"{name}.jpg" for name in names]
    assert [path.stem for path in in_frame_order(paths)] == expected
