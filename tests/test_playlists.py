"""Text that names other files is no video, by whatever name it comes, and nothing that it names is opened."""

import dataclasses
import shutil
from pathlib import Path

import av
import pytest
from backend import backend_or_skip

from videossl.catalog.listing import FoundVideo
from videossl.catalog.scanning import scan_video
from videossl.data.entry import sound_entry
from videossl.decode.container import open_container
from videossl.decode.index import probe, read_index
from videossl.decode.source import VideoSource
from videossl.errors import VideoDecodeError

LISTS = {
    "ffconcat": "ffconcat version 1.0\nfile named.mp4\n",
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.5,\nnamed.mp4\n#EXT-X-ENDLIST\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
}


@pytest.fixture
def named(numbered_video, tmp_path) -> Path:
    return Path(shutil.copy(numbered_video("h264"), tmp_path / "named.mp4"))


def test_the_harmless_list_does_open_what_it_names_where_all_is_allowed(named):
    path = named.with_name("v.mp4")
    path.write_text(LISTS["ffconcat"])
    with av.open(str(path)) as container:
        assert container.format.name == "concat"
        assert next(container.decode(video=0)).width


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".ts"])
def test_a_list_of_files_is_no_video(kind, ending, named):
    path = named.with_name("v" + ending)
    path.write_text(LISTS[kind])
    with pytest.raises(VideoDecodeError, match=r"no video but a list|invalid data"):
        probe(path)
    row = scan_video(FoundVideo(str(path), path.stat().st_size))
    assert row.status == "broken"
    assert "\n" not in row.reason


def test_the_reason_names_the_list(named):
    path = named.with_name("v.mp4")
    path.write_text(LISTS["ffconcat"])
    with pytest.raises(VideoDecodeError, match="no video but a list of others"):
        probe(path)
    member = VideoSource(str(path), 0, path.stat().st_size)
    with pytest.raises(VideoDecodeError, match="no video but a list of others"):
        open_container(member)


def test_a_format_that_a_manifest_makes_up_is_refused(named):
    path = named.with_name("v.mp4")
    path.write_text(LISTS["ffconcat"])
    with pytest.raises(VideoDecodeError, match="no video but a list of others"):
        open_container(VideoSource(str(path)), known_format="concat")


@pytest.mark.parametrize("backend", ["pyav", "torchcodec", "decord"])
def test_no_backend_opens_a_list_in_place_of_the_video_that_was_scanned(backend, named):
    reader = backend_or_skip(backend)
    path = Path(shutil.copy(named, named.with_name("v.mp4")))
    index = sound_entry(read_index(path), VideoSource(str(path)), group="g").index()
    with reader(str(path), index=index) as opened:
        assert opened.num_frames
    text = LISTS["ffconcat"].encode()
    path.write_bytes(text + b"#" * (path.stat().st_size - len(text)))
    for known in (None, dataclasses.replace(index, num_bytes=path.stat().st_size)):
        with pytest.raises(VideoDecodeError):
            reader(str(path), index=known)
