import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered_video import VARIANTS, Variant, read_numbers, write_numbered_video
from test_inspect import scene, write

from videossl.__main__ import main
from videossl.catalog import packing
from videossl.catalog.listing import FoundVideo
from videossl.catalog.pack_plan import output_size, plan_shots
from videossl.catalog.pack_settings import PackSettings
from videossl.catalog.pack_video import pack_video
from videossl.catalog.scanning import scan_video
from videossl.data.entry import VideoEntry, write_manifest
from videossl.data.manifest import read_manifest
from videossl.decode.pyav_reader import PyavReader
from videossl.decode.source import VideoSource
from videossl.errors import UserError, VideoDecodeError


def row_of(path, *, deep=False, **facts):
    entry = scan_video(FoundVideo(str(path), group="g", label="l"), deep=deep)
    assert entry.is_ok, entry.reason
    return replace(entry, **facts)


def packed_rows(folder, *entries, settings=(), workers=1):
    """Packs the videos of these rows through the command; returns the rows of the packed manifest."""
    folder.mkdir(exist_ok=True)
    write_manifest(entries, folder / "source.parquet")
    out = folder / "packed"
    arguments = ["pack", str(folder / "source.parquet"), "-o", str(out), "--workers", str(workers)]
    assert main([*arguments, *map(str, settings)]) == 0
    return list(read_manifest(out / "manifest.parquet"))


def frames_of(entry):
    with PyavReader(entry.source, index=entry.index()) as reader:
        return reader.frames_at(range(entry.num_frames)).data


def source_frames(entry, indices):
    with PyavReader(entry.source, index=entry.index()) as reader:
        return reader.frames_at(indices).data


def hashes(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.suffix in (".tar", ".json")
    }


# --- frames ---

KINDS = sorted(set(VARIANTS) - {"h264_one_frame", "gif", "mpeg4_padded_rows"})


@pytest.mark.parametrize("name", KINDS)
def test_packed_frames_are_those_of_the_source(numbered_video, tmp_path, name):
    source = row_of(numbered_video(name))
    (packed,) = packed_rows(tmp_path, source, settings=["--crf", 12, "--short-side", 96])
    if source.is_constant_rate:
        wanted = list(range(VARIANTS[name].num_frames))
    else:  # by hand: the last frame whose time has come
        seconds = VARIANTS[name].seconds
        times = np.arange(packed.num_frames) * (seconds[-1] - seconds[0]) / (len(seconds) - 1)
        wanted = [int(np.flatnonzero(seconds <= t + 1e-4)[-1]) for t in times]
        assert len(set(wanted)) < len(wanted)
    frames = frames_of(packed)
    assert read_numbers(frames) == [number % 256 for number in wanted]
    assert packed.is_constant_rate
    assert (packed.codec, packed.container, packed.rotation) == ("h264", "mov", 0)
    height, width = frames.shape[2:]
    assert (height, width) == (source.height // 2 * 2, source.width // 2 * 2)
    ours = source_frames(source, sorted(set(wanted)))[:, :, :height, :width].float()
    theirs = frames[[wanted.index(number) for number in sorted(set(wanted))]].float()
    assert (ours - theirs).abs().mean() < 5  # of 255


def test_fps_picks_the_frames_shown_then(numbered_video, tmp_path):
    source = row_of(numbered_video("h264_b_frames"))
    settings = ["--fps", 10, "--short-side", 96]
    (packed,) = packed_rows(tmp_path / "slow", source, settings=settings)
    # 60 frames at 25 a second: at 0.1 k seconds, frame floor(2.5 k).
    assert read_numbers(frames_of(packed)) == [k * 5 // 2 for k in range(24)]
    assert packed.fps == pytest.approx(10)
    settings[1] = 50
    (packed,) = packed_rows(tmp_path / "fast", source, settings=settings)
    assert read_numbers(frames_of(packed)) == [k // 2 for k in range(120)]


def test_rate_of_television_is_kept_exactly(tmp_path):
    path = write(tmp_path / "a.mp4", scene(1, 60), fps=Fraction(30000, 1001))
    (packed,) = packed_rows(tmp_path, row_of(path))
    assert packed.num_frames == 60
    assert packed.fps == pytest.approx(30000 / 1001, abs=1e-6)


def test_key_frames_come_regularly_and_no_frame_is_out_of_order(numbered_video, tmp_path):
    source = row_of(numbered_video("h264_long_gop"))
    (packed,) = packed_rows(tmp_path, source, settings=["--gop", 16])
    assert packed.key_frames == tuple(range(0, 250, 16))
    with av.open(packed.source.open()) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        assert not container.streams.video[0].codec_context.has_b_frames
    assert [p.pts for p in packets] == [p.dts for p in packets]
    assert [p.pts for p in packets] == sorted(p.pts for p in packets)


def test_size_is_even_and_never_larger_than_the_source():
    assert output_size(1920, 1080, (), 256) == ((0, 0, 0, 0), (456, 256))
    assert output_size(1080, 1920, (), 256) == ((0, 0, 0, 0), (256, 456))
    assert output_size(131, 97, (), 256) == ((0, 1, 0, 1), (130, 96))
    assert output_size(640, 480, (60, 61, 0, 0), 1000) == ((62, 62, 0, 0), (640, 356))
    assert output_size(641, 480, (0, 0, 3, 0), 128) == ((0, 0, 4, 1), (170, 128))


@pytest.mark.parametrize("picture", [(1, 1), (1, 64), (64, 1)])
def test_a_picture_too_small_for_its_chroma_is_refused(picture):
    with pytest.raises(ValueError, match="smaller than the 2x2"):
        output_size(*picture, (), 256)


def test_sound_is_dropped_and_the_index_comes_first(numbered_video, tmp_path):
    path = tmp_path / "loud.mp4"
    with (
        av.open(str(numbered_video("h264"))) as video,
        av.open(str(path), "w") as output,
    ):
        copied = output.add_stream_from_template(video.streams.video[0])
        sound = output.add_stream("aac", rate=44100, layout="mono")
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = copied
                output.mux(packet)
        for number in range(100):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 44100, 1024 * number
            output.mux(sound.encode(frame))
        output.mux(sound.encode())
    (packed,) = packed_rows(tmp_path, row_of(path))
    content = packed.source.read()
    with av.open(io.BytesIO(content)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert "creation_time" not in container.metadata
    assert 0 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize("matrix", [1, 5, 9])  # BT.709, BT.601, BT.2020
def test_colours_of_every_matrix_are_kept(tmp_path, matrix):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "8"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.colorspace = matrix
        for picture in scene(4, 30):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode())
    source = row_of(path)
    (packed,) = packed_rows(tmp_path, source, settings=["--crf", 8, "--short-side", 48])
    ours, theirs = source_frames(source, range(30)).float(), frames_of(packed).float()
    assert theirs.shape == (30, 3, 48, 64)
    shift = ours.mean(dim=(0, 2, 3)) - theirs.mean(dim=(0, 2, 3))
    assert shift.abs().max() < 1


# --- shots and bars ---


def test_cut_video_gives_a_file_per_shot_without_bars(tmp_path):
    frames = [np.array(f) for f in [*scene(1, 50, speed=1), *scene(2, 40, speed=1), *scene(3, 9)]]
    for frame in frames:
        frame[:12] = frame[-12:] = 0
    source = row_of(write(tmp_path / "a.mp4", frames, crf=10), deep=True)
    assert source.bars == (12, 12, 0, 0)
    first, second = packed_rows(tmp_path, source, settings=["--crf", 12])
    assert [(e.num_frames, e.width, e.height) for e in (first, second)] == [
        (50, 128, 68),
        (40, 128, 68),
    ]
    assert [(e.group, e.label, e.is_deep, e.bars, e.cuts) for e in (first, second)] == [
        ("g", "l", True, (0, 0, 0, 0), ())
    ] * 2
    ours = source_frames(source, range(90))[:, :, 14:-14].float()
    for entry, part in ((first, ours[:50]), (second, ours[50:])):
        assert (frames_of(entry).float() - part).abs().mean() < 5
    with tarfile.open(first.path) as tar:
        described = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
    assert [(d["begin_seconds"], d["end_seconds"]) for d in described] == [
        pytest.approx((0.0, 2.0)),
        pytest.approx((2.0, 3.6)),
    ]
    assert described[0]["source"] == str(tmp_path / "a.mp4")
    assert (described[0]["group"], described[0]["label"], described[0]["fps"]) == ("g", "l", 25.0)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_bars_of_a_turned_video_are_cropped_where_they_are_shown(numbered_video, rotation):
    source = row_of(numbered_video(f"h264_rotated_{rotation}"), bars=(0, 10, 0, 22))
    (shot,) = pack_video(source, PackSettings(crf=10)).shots
    height, width = source.height - 12, source.width - 24
    with av.open(io.BytesIO(shot.content)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert shown.shape == (height, width, 3)
    whole = source_frames(source, [0])[0].permute(1, 2, 0).numpy()
    assert np.abs(shown.astype(int) - whole[:height, :width]).mean() < 5


def test_shots_too_short_are_counted_and_not_written(tmp_path):
    entry = row_of(write(tmp_path / "a.mp4", scene(1, 60)), cuts=(0.2, 1.0))
    shots, num_short = plan_shots(entry.index(), entry.cuts, PackSettings(min_shot_seconds=0.9))
    assert num_short == 2
    assert [shot.frames.tolist() for shot in shots] == [list(range(25, 60))]
    (packed,) = packed_rows(tmp_path, entry, settings=["--min-shot", 0.9])
    assert packed.num_frames == 35


@pytest.mark.parametrize("fps", [None, 7, 29, 60])
def test_shots_take_no_frame_of_their_neighbours(tmp_path, fps):
    """In a container that rounds to milliseconds, as no frame time of 30 a second is."""
    path = write(tmp_path / "a.mkv", scene(1, 200), fps=30)
    entry = row_of(path)
    seconds = entry.index().pts_seconds
    starts = [0, 43, 44, 101, 200]
    cuts = tuple(float(np.float32(seconds[start])) for start in starts[1:-1])
    settings = PackSettings(fps=fps, min_shot_seconds=0)
    shots, _ = plan_shots(entry.index(), cuts, settings)
    for shot, first, stop in zip(shots, starts, starts[1:], strict=False):
        assert first == shot.frames[0]
        assert shot.frames[-1] < stop
        assert (np.diff(shot.frames) >= 0).all()
        if fps in (None, 60):
            assert set(shot.frames.tolist()) == set(range(first, stop))


# --- shards ---


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """The manifest of seven clips and a broken file."""
    folder = tmp_path_factory.mktemp("seven")
    for number in range(7):
        variant = Variant(width=96, height=64, num_frames=30 + number)
        write_numbered_video(folder / f"{number}.mp4", variant)
    (folder / "35.mp4").write_text("no video")
    assert main(["scan", str(folder), "-o", str(folder / "m.parquet"), "--workers", "1"]) == 0
    return folder / "m.parquet"


def pack_to(out, manifest, *options):
    return main(["pack", str(manifest), "-o", str(out), "--videos-per-shard", "2", *options])


def test_packing_twice_gives_the_same_bytes(seven, tmp_path):
    assert pack_to(tmp_path / "a", seven, "--workers", "1") == 0
    assert pack_to(tmp_path / "b", seven, "--workers", "3") == 0
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert [name for name in hashes(tmp_path / "a") if name.endswith("tar")] == [
        f"shard-{number:06d}.tar" for number in range(4)
    ]
    assert (tmp_path / "a" / "skipped.jsonl").read_text() == ""


def test_members_are_read_alike_in_order_and_by_range(seven, tmp_path):
    assert pack_to(tmp_path / "a", seven) == 0
    rows = list(read_manifest(tmp_path / "a" / "manifest.parquet"))
    members = []
    for shard in sorted((tmp_path / "a").glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                if member.name.endswith(".mp4"):
                    members.append((str(shard), tar.extractfile(member).read()))
    assert [(row.path, row.source.read()) for row in rows] == members
    assert [row.num_frames for row in rows] == [30, 31, 32, 33, 34, 35, 36]
    for row in rows:
        again = row_of_member(row)
        assert np.allclose(again.motion, row.motion)
        assert replace(again, motion=row.motion) == row


def row_of_member(row):
    """What scanning the member by itself gives."""
    from videossl.data.entry import sound_entry
    from videossl.decode.index import read_index

    source = VideoSource(row.path, row.offset, row.bytes)
    return sound_entry(read_index(source), source, group=row.group)


def test_webdataset_reads_the_shards(seven, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    assert pack_to(tmp_path / "a", seven) == 0
    shards = [str(path) for path in sorted((tmp_path / "a").glob("*.tar"))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    rows = list(read_manifest(tmp_path / "a" / "manifest.parquet"))
    assert [sample["mp4"] for sample in samples] == [row.source.read() for row in rows]
    assert [json.loads(sample["json"])["num_frames"] for sample in samples] == list(range(30, 37))
    assert [sample["__key__"] for sample in samples][:2] == ["00000000-000", "00000001-000"]


def test_finished_pack_is_not_packed_again(seven, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="videossl")
    assert pack_to(tmp_path / "a", seven) == 0
    before = hashes(tmp_path / "a")
    (tmp_path / "a" / "shard-000002.tar").unlink()

    def only_shard_2(task):
        entry, settings = task
        assert Path(entry.path).name in ("4.mp4", "5.mp4")
        return pack_video(entry, settings)

    monkeypatch.setattr(packing, "_pack_task", only_shard_2)
    assert pack_to(tmp_path / "a", seven) == 0
    assert "3 of 4 shards are there already" in caplog.text
    assert hashes(tmp_path / "a") == before


def zero(path, entry, num_bytes=400):
    """As a failing disk does: the size stays."""
    with path.open("r+b") as file:
        file.seek(entry.offset + entry.bytes // 2)
        file.write(b"\0" * num_bytes)


def test_a_damaged_shard_is_found_and_packed_anew(seven, tmp_path, capsys, caplog):
    caplog.set_level("INFO", logger="videossl")
    out = tmp_path / "a"
    assert pack_to(out, seven) == 0
    before, entry = hashes(out), read_manifest(out / "manifest.parquet")[3]
    zero(out / "shard-000001.tar", entry)
    scanned = tmp_path / "m.parquet"
    assert main(["scan", str(out), "-o", str(scanned), "--deep"]) == 0
    assert "6 samples ok, 1 broken" in capsys.readouterr().out
    (broken,) = [row for row in read_manifest(scanned) if not row.is_ok]
    assert (broken.path, broken.offset) == (entry.path, entry.offset)
    assert broken.reason == "its bytes are not those that were packed"
    assert pack_to(out, seven) == 0
    assert "shard-000001.tar: 1 samples are damaged: it is packed anew" in caplog.text
    assert hashes(out) == before


def test_shards_without_digests_are_held_to_their_sizes(seven, tmp_path, caplog):
    caplog.set_level("INFO", logger="videossl")
    out = tmp_path / "a"
    assert pack_to(out, seven) == 0
    before = (out / "shard-000000.tar").read_bytes()
    for path in out.glob("*.rows.json"):
        rows = json.loads(path.read_text())
        del rows["sha256"]
        path.write_text(json.dumps(rows))
    assert pack_to(out, seven) == 0
    assert "4 shards were packed before digests were kept" in caplog.text
    assert (out / "shard-000000.tar").read_bytes() == before


def test_the_rows_of_a_pack_are_scanned_as_they_were_packed(seven, tmp_path):
    out = tmp_path / "a"
    assert pack_to(out, seven) == 0
    assert main(["scan", str(out), "-o", str(tmp_path / "m.parquet")]) == 0
    assert list(read_manifest(tmp_path / "m.parquet")) == list(
        read_manifest(out / "manifest.parquet")
    )


def test_pack_that_was_killed_goes_on_to_the_same_bytes(seven, tmp_path):
    assert pack_to(tmp_path / "whole", seven) == 0
    out = tmp_path / "killed"
    code = (
        "import time; from videossl.__main__ import main; from videossl.catalog import packing\n"
        "do = packing._pack_task\n"
        "def slow(task): time.sleep(0.2); return do(task)\n"
        "packing._pack_task = slow\n"
        f"main(['pack', {str(seven)!r}, '-o', {str(out)!r}, '--videos-per-shard', '2', '--workers', '1'])"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (out / "shard-000001.tar").exists():
            time.sleep(0.01)
        process.kill()
    assert not (out / "shard-000003.tar").exists()
    assert pack_to(out, seven, "--workers", "2") == 0
    assert hashes(out) == hashes(tmp_path / "whole")
    assert not list(out.glob(".*"))


def test_interrupted_pack_leaves_a_manifest_of_what_is_finished(
    seven, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="videossl")

    def interrupt(items, **_):
        for number, item in enumerate(items):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(packing, "track", interrupt)
    assert pack_to(tmp_path / "a", seven) == 130
    assert "2 of 4 shards are finished" in caplog.text
    rows = list(read_manifest(tmp_path / "a" / "manifest.parquet"))
    assert [row.num_frames for row in rows] == [30, 31, 32, 33]
    assert not list((tmp_path / "a").glob(".*"))


LIMITED = """
import resource, signal, sys
from videossl.__main__ import main
from videossl.catalog import packing
finish, count = packing.ShardWriter.finish, []
def limited(self):
    if count:  # the second shard meets the limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))
    count.append(1)
    finish(self)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
packing.ShardWriter.finish = limited
abandon = packing.ShardWriter.abandon
def freed(self):
    abandon(self)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
packing.ShardWriter.abandon = freed
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no file size limits")
def test_full_disk_leaves_the_finished_shards_and_one_line(seven, tmp_path):
    assert pack_to(tmp_path / "whole", seven) == 0
    out = tmp_path / "full"
    command = [sys.executable, "-c", LIMITED, "pack", str(seven), "-o", str(out)]
    command += ["--videos-per-shard", "2", "--workers", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "File too large; 1 of 4 shards are finished and can be used" in result.stderr
    assert "the same command goes on" in result.stderr
    rows = list(read_manifest(out / "manifest.parquet"))
    assert [read_numbers(frames_of(row))[-1] for row in rows] == [29, 30]
    assert sorted(path.suffix for path in out.iterdir() if "shard" in path.name) == [
        ".json",
        ".tar",
    ]
    assert pack_to(out, seven) == 0
    assert hashes(out) == hashes(tmp_path / "whole")


def test_full_disk_while_a_member_is_written(seven, tmp_path, monkeypatch, capsys):
    add = packing.ShardWriter.add

    def full(self, row, source, video):
        if row == 3:
            raise OSError(28, "No space left on device")
        add(self, row, source, video)

    with monkeypatch.context() as patched:
        patched.setattr(packing.ShardWriter, "add", full)
        assert pack_to(tmp_path / "a", seven) == 2
    assert "No space left on device; 1 of 4 shards" in capsys.readouterr().err
    assert len(read_manifest(tmp_path / "a" / "manifest.parquet")) == 2
    assert not list((tmp_path / "a").glob(".*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short-side", "64"], "other settings, short_side 256 \\(now 64\\)"),
        (
            ["--crf", "30", "--fps", "5"],
            "other settings, fps None \\(now 5.0\\), crf 23 \\(now 30\\)",
        ),
    ],
)
def test_other_settings_in_the_same_folder_fail(seven, tmp_path, capsys, options, message):
    import re

    assert pack_to(tmp_path / "a", seven) == 0
    before = hashes(tmp_path / "a")
    capsys.readouterr()
    assert pack_to(tmp_path / "a", seven, *options) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.count("\n") == 1
    assert hashes(tmp_path / "a") == before


def test_other_videos_in_the_same_folder_fail(seven, tmp_path):
    assert pack_to(tmp_path / "a", seven) == 0
    fewer = tmp_path / "fewer.parquet"
    write_manifest(list(read_manifest(seven))[:-1], fewer)
    with pytest.raises(UserError, match=r"another list of videos \(7, now 6\)"):
        packing.claim_folder(
            tmp_path / "a",
            PackSettings(videos_per_shard=2),
            read_manifest(fewer),
            np.flatnonzero(read_manifest(fewer).is_ok()),
        )


def test_folder_with_other_tars_fails(seven, tmp_path):
    (tmp_path / "backup.tar").touch()
    assert pack_to(tmp_path, seven) == 2


# --- videos that cannot be packed ---


def test_video_that_fails_is_skipped_with_its_reason(seven, tmp_path, capsys):
    entries = [entry for entry in read_manifest(seven) if entry.is_ok]
    changed = tmp_path / "changed.mp4"
    changed.write_bytes(Path(entries[1].path).read_bytes() + b"more")
    entries[1] = replace(entries[1], path=str(changed))
    entries[2] = replace(entries[2], path=str(tmp_path / "gone.mp4"))
    entries[3] = replace(entries[3], num_frames=40, last_tick=entries[3].last_tick * 40 // 33)
    rows = packed_rows(tmp_path, *entries)
    assert [row.num_frames for row in rows] == [30, 34, 35, 36]
    lines = (tmp_path / "packed" / "skipped.jsonl").read_text().splitlines()
    skipped = {Path(line["path"]).name: line["reason"] for line in map(json.loads, lines)}
    assert "it has changed since the scan" in skipped["changed.mp4"]
    assert skipped["gone.mp4"] == "no such file"
    assert "never came out of the decoder" in skipped["3.mp4"]
    assert "3 videos skipped" in capsys.readouterr().out


def test_damaged_video_fails(tmp_path):
    from test_inspect import flip_bytes

    sound = write(tmp_path / "a.mp4", scene(1, 120))
    flip_bytes(sound, sound, 100)
    entry = row_of(sound)
    with pytest.raises(VideoDecodeError, match="damaged: "):
        pack_video(entry, PackSettings())


def test_video_that_hangs_or_crashes_is_skipped(seven, tmp_path, monkeypatch):
    def misbehave(entry, settings):
        name = Path(entry.path).stem
        while name == "1":
            pass
        if name == "2":
            os._exit(3)
        return pack_video(entry, settings)

    monkeypatch.setattr(packing, "pack_video", misbehave)
    monkeypatch.setattr(packing, "LIMIT_SECONDS", 1.0)
    assert pack_to(tmp_path / "a", seven, "--workers", "2") == 0
    lines = (tmp_path / "a" / "skipped.jsonl").read_text().splitlines()
    skipped = {Path(line["path"]).stem: line["reason"] for line in map(json.loads, lines)}
    assert skipped == {
        "1": "it hangs the decoder",
        "2": "the process exited with code 3",
    }
    assert len(read_manifest(tmp_path / "a" / "manifest.parquet")) == 5


def test_shard_of_which_nothing_can_be_packed_is_no_tar(seven, tmp_path):
    entries = [replace(e, path=f"/gone/{e.bytes}.mp4") for e in read_manifest(seven) if e.is_ok]
    sound = [e for e in read_manifest(seven) if e.is_ok]
    rows = packed_rows(tmp_path, *entries[:2], *sound[2:4], settings=["--videos-per-shard", 2])
    assert len(rows) == 2
    assert [path.name for path in (tmp_path / "packed").glob("*.tar")] == ["shard-000001.tar"]
    assert (
        main(
            [
                "pack",
                str(tmp_path / "source.parquet"),
                "-o",
                str(tmp_path / "packed"),
                "--videos-per-shard",
                "2",
            ]
        )
        == 0
    )


def test_manifest_without_a_sound_video_fails(tmp_path):
    broken = VideoEntry(path="/b.mp4", group="b", status="broken", reason="it is empty", bytes=0)
    write_manifest([broken], tmp_path / "m.parquet")
    assert pack_to(tmp_path / "a", tmp_path / "m.parquet") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--short-side", "127"], "--short-side must be an even number >= 16, got 127"),
        (["--fps", "0"], "--fps must be above 0"),
        (["--gop", "0"], "--gop must be from 1 to 1000, got 0"),
        (["--crf", "52"], "--crf must be from 0"),
        (["--videos-per-shard", "0"], "--videos-per-shard must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--min-shot", "-1"], "--min-shot must be at least 0 s"),
    ],
)
def test_bad_options_fail(seven, tmp_path, capsys, options, message):
    assert pack_to(tmp_path / "a", seven, *options) == 2
    assert message in capsys.readouterr().err


def test_pack_does_not_import_torch(seven, tmp_path):
    code = (
        "import sys; from videossl.__main__ import main; "
        f"code = main(['pack', {str(seven)!r}, '-o', {str(tmp_path / 'a')!r}]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
