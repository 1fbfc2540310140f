"""The table of protocols in docs/tracking.md says what the presets are."""

from pathlib import Path

import pytest

from videossl.tracking.protocol import PRESETS, Protocol

DOCS = Path(__file__).parents[1] / "docs" / "tracking.md"


def frames_in(p: Protocol) -> str:
    if p.input_hw:
        return f"{p.input_hw[0]} x {p.input_hw[1]}"
    floored = f", long side floored to {p.long_side_multiple}" if p.long_side_multiple else ""
    return f"{p.short_side}{floored}"


def frames_read(p: Protocol) -> str:
    if p.memory_offsets:
        kept, offsets = (", ".join(map(str, n)) for n in (p.anchor_frames, p.memory_offsets))
        return f"{{{kept}}} + t - {{{offsets}}}"
    first = "first + " if p.keep_first else ""
    copies = "" if p.first_copies == "once" else f", first {p.first_copies}"
    return f"{first}last {p.context_frames}{copies}"


def window(p: Protocol) -> str:
    if p.radius is None:
        return "everywhere"
    whole = ", first frame whole" if p.first_unmasked else ""
    coarse = f", searched coarsely after {p.align_after} frames" if p.align_after else ""
    falloff = f", sigma {p.distance_sigma:g}" if p.distance_sigma else ""
    return f"{p.window} {p.radius}{falloff}{whole}{coarse}"


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_docs_state_the_preset(name: str) -> None:
    p = PRESETS[name]
    of_each = " of each frame, rest lost" if p.top_k_of == "frame" else ""
    features = "grey, " if p.grey else ""
    features += ("with its mirror image, " if p.mirror else "") + ("centred, " if p.centre else "")
    cells = [
        f"`{name}`",
        frames_in(p),
        features + ("L2" if p.normalize else "as they are"),
        frames_read(p),
        window(p),
        "all" if p.top_k is None else f"{p.top_k}{of_each}",
        f"{p.temperature:.3g}",
        p.label_downsample + (f", hard at {p.hard_at}" if p.hard_labels else ""),
        (f"min-max at {p.norm_mask_at}, " if p.norm_mask else "")
        + (f"expected J of shares^{p.decision_power:g}, " if p.decision == "expected_iou" else "")
        + f"at {p.decision_at}"
        + (f", guided filter {p.refine_radius}" if p.refine_radius else ""),
    ]
    assert f"| {' | '.join(cells)} |" in DOCS.read_text().splitlines()
