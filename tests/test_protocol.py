"""Settings of a protocol that do not go together are refused where they are given."""

import pytest

from videossl.errors import UserError
from videossl.tracking.protocol import preset


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mast", {"anchor_frames": "5"}, r"anchor_frames must hold 0, got \(5,\)"),
        ("videossl", {"memory_offsets": "1,2", "anchor_frames": "3"}, "anchor_frames must hold 0"),
        ("mast", {"anchor_frames": "0,-1"}, r"anchor_frames must be >= 0, got \(0, -1\)"),
        ("mast", {"window": "circle"}, "align_after needs window square"),
        ("mast", {"first_unmasked": "true"}, "align_after needs .* first_unmasked false"),
        ("mast", {"first_copies": "queried"}, "queried cannot be with memory_offsets"),
        ("videossl", {"input_hw": "256,100000"}, "input_hw must be up to 16384 pixels"),
        ("videossl", {"temperature": "inf"}, "temperature must be > 0 and finite, got inf"),
        ("videossl", {"decision_power": "inf"}, "decision_power must be > 0 and finite, got inf"),
        ("videossl", {"distance_sigma": "nan"}, "distance_sigma must be > 0 and finite, or none"),
        ("videossl", {"refine_epsilon": "inf"}, "refine_epsilon > 0, got 8, 240 and inf"),
    ],
)
def test_settings_that_do_not_go_together_fail(
    name: str, overrides: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        preset(name, overrides)
