"""The control set without an arrow of time, and files coded anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from videossl.audit.codec_traces import VARIANTS, control_baselines, recoding_check, transcoded
from videossl.audit.findings import Audit
from videossl.audit.shortcut_baselines import (
    Check,
    Judged,
    standard_error,
)
from videossl.data.dataset import ClipDataset
from videossl.data.manifest import read_manifest
from videossl.decode.index import read_index
from videossl.types import ClipSpec


def test_the_control_set_is_at_chance_raw_and_by_the_rules_and_not_at_heads(tmp_path):
    raw, rules, head, together = control_baselines(tmp_path, num_videos=36, seed=0)
    assert together.verdict == "at chance"
    assert Audit([raw, rules, head, together], [], []).leaks == []
    leaking = replace(rules, verdict="leaks")
    assert Audit([raw, leaking, head], [], []).leaks == [f"control set: P1 {rules.name}"]
    for row in (raw, rules):
        assert row.verdict == "at chance"
        assert abs(row.accuracy.estimate - 0.5) < 3 * standard_error(row.accuracy)
    assert head.accuracy.low > 0.5
    assert head.accuracy.estimate > max(raw.accuracy.estimate, rules.accuracy.estimate) + 0.15
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert control_baselines(tmp_path, num_videos=4, seed=0)[0].verdict == "too few videos"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_the_same_clips_are_read_from_other_files(tmp_path, video_folder):
    """Frame k of the file coded anew stands for frame k: pictures alike, times and crops the same."""
    manifest = read_manifest(video_folder)
    spec = ClipSpec(1, 4, 0.1, 32)
    data = ClipDataset(manifest, [spec], seed=0, short_side=48, rows=np.arange(3), shuffle=False)
    swapped, rows = transcoded(data, tmp_path)
    assert rows == {0, 1, 2}
    for position in range(3):
        own = data[position]
        for name, other in swapped.items():
            found = other[position]
            assert torch.equal(found.pts_seconds[spec], own.pts_seconds[spec])
            apart = (found.frames[spec].float() - own.frames[spec].float()).abs().mean()
            assert 0 < float(apart) < 8, name


def test_intra_only_files_hold_key_frames_alone(tmp_path, video_folder):
    data = ClipDataset(
        read_manifest(video_folder),
        [ClipSpec(1, 2, 0.1, 32)],
        seed=0,
        short_side=48,
        rows=np.arange(1),
    )
    transcoded(data, tmp_path)
    keys = {
        name: read_index(tmp_path / f"{number}_0.mp4").is_key
        for number, name in enumerate(VARIANTS)
    }
    assert keys["intra-only"].all()


def test_a_loss_is_named_where_it_is_beyond_chance_and_three_points():
    videos = np.repeat(np.arange(40), 10)
    right = np.random.default_rng(0).random(400) < 0.9
    before = Judged(right, None, videos)
    worse = Judged(right & (np.arange(400) % 5 > 0), None, videos)
    everyone = set(range(40))

    def check(first: Judged, second: Judged, coded: set[int] = everyone) -> Check:
        return recoding_check("the model", "CRF 28", first, second, coded=coded)

    assert not check(before, worse).is_clean
    assert check(before, before).is_clean
    assert check(worse, before).is_clean  # a gain is no loss
    # Of 40 videos 4 were coded anew: the others, the same before and after, must not dilute what is lost.
    few = np.isin(videos, range(4))
    diluted = check(before, Judged(np.where(few, False, right), None, videos), set(range(4)))
    assert diluted.numbers["loss"] == pytest.approx(right[few].mean())
    assert not diluted.is_clean
    assert check(before, worse, {99}).says.startswith("P7 not run: the model is asked nothing")
