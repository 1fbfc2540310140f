import functools
import http.server
import random
import re
import tarfile
import threading
import zipfile
from pathlib import Path

import fsspec
import pytest

from videossl.__main__ import main
from videossl.catalog.listing import find_videos
from videossl.data.manifest import read_manifest
from videossl.decode.backends import open_video
from videossl.decode.index import read_index
from videossl.decode.source import VideoSource, beside, path_of, protocol_of, split_url
from videossl.errors import UserError, VideoDecodeError

FACTS = ("num_frames", "fps", "width", "key_frames", "motion", "first_tick", "last_tick", "bytes")


@pytest.fixture
def memory(numbered_video):
    """memory://videos with two sound videos in two folders, a broken one and another file."""
    files = fsspec.filesystem("memory")
    contents = {
        "/videos/run/a.mp4": numbered_video("h264").read_bytes(),
        "/videos/sit/b.webm": numbered_video("vp9").read_bytes(),
        "/videos/sit/broken.mp4": b"this is no video",
        "/videos/notes.txt": b"notes",
    }
    for name, content in contents.items():
        files.pipe_file(name, content)
    yield "memory://videos"
    files.rm("/videos", recursive=True)


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves parts of files, as every storage does and Python's own server does not."""

    num_requests = 0

    def do_GET(self):
        type(self).num_requests += 1
        match = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if match is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        begin = int(match[1])
        end = min(int(match[2]) if match[2] else len(content) - 1, len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{len(content)}")
        self.send_header("Content-Length", str(end - begin + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        self.wfile.write(content[begin : end + 1])

    def end_headers(self):
        if self.command == "HEAD":
            self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path, numbered_video):
    """The address of a folder with two videos and a list of them."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "web"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / "a.mp4").write_bytes(numbered_video("h264").read_bytes())
    (folder / "clips" / "b.mkv").write_bytes(numbered_video("h264_mkv").read_bytes())
    (folder / "list.csv").write_text("path,label\nclips/a.mp4,run\nclips/b.mkv,sit\nclips/c.mp4,\n")
    handler = functools.partial(RangeHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def facts(entry):
    return {name: getattr(entry, name) for name in FACTS}


def local_facts(tmp_path, path, *options):
    out = tmp_path / f"{path.stem}.parquet"
    assert main(["scan", str(path), "-o", str(out), "--workers", "1", *options]) == 0
    return facts(read_manifest(out)[0])


@pytest.mark.parametrize("options", [(), ("--deep",)])
def test_scan_of_a_memory_url_equals_that_of_the_files(memory, tmp_path, numbered_video, options):
    out = tmp_path / "m.parquet"
    arguments = ["scan", memory, "-o", str(out), "--labels", "folder", "--workers", "1", *options]
    assert main(arguments) == 0
    a, b, broken = read_manifest(out)
    assert [entry.path for entry in (a, b, broken)] == [
        "memory:///videos/run/a.mp4",
        "memory:///videos/sit/b.webm",
        "memory:///videos/sit/broken.mp4",
    ]
    assert [entry.label for entry in (a, b, broken)] == ["run", "sit", "sit"]
    assert broken.status == "broken"
    assert broken.bytes == 16
    assert facts(a) == local_facts(tmp_path, numbered_video("h264"), *options)
    assert facts(b) == local_facts(tmp_path, numbered_video("vp9"), *options)
    assert a.group == "run/a"


def test_second_scan_of_a_url_retries_only_what_failed(memory, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="videossl")
    out = tmp_path / "m.parquet"
    assert main(["scan", memory, "-o", str(out)]) == 0
    assert main(["scan", memory, "-o", str(out)]) == 0
    assert "2 videos are as an earlier scan found them" in caplog.text


def test_list_on_a_web_server_is_scanned(web, tmp_path, numbered_video):
    out = tmp_path / "m.parquet"
    assert main(["scan", f"{web}/list.csv", "-o", str(out), "--workers", "2"]) == 0
    a, b, missing = read_manifest(out)
    assert [entry.path for entry in (a, b)] == [f"{web}/clips/a.mp4", f"{web}/clips/b.mkv"]
    assert [entry.label for entry in (a, b)] == ["run", "sit"]
    assert facts(a) == local_facts(tmp_path, numbered_video("h264"))
    assert facts(b) == local_facts(tmp_path, numbered_video("h264_mkv"))
    assert (missing.status, "no such file" in missing.reason) == ("broken", True)


def test_video_on_a_web_server_is_scanned(web, tmp_path):
    out = tmp_path / "m.parquet"
    assert main(["scan", f"{web}/clips/a.mp4", "-o", str(out), "--deep"]) == 0
    assert [entry.num_frames for entry in read_manifest(out)] == [60]


def test_folder_on_a_web_server_fails(web):
    with pytest.raises(UserError, match="http has no listing of folders; name the videos"):
        find_videos([f"{web}/clips/"])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", "no such file or folder"),
        ("nosuchprotocol://a/b", "cannot list nosuchprotocol://a/b: .*nosuchprotocol"),
        ("memory://nowhere.csv", "no such list"),
    ],
)
def test_url_that_cannot_be_listed_fails(url, message):
    with pytest.raises(UserError, match=message):
        find_videos([url])


# --- chained URLs ---


@pytest.fixture
def archives(tmp_path, numbered_video):
    """The URLs in front of which a member's path makes a chained one."""
    mp4, webm = numbered_video("h264"), numbered_video("vp9")
    members = {"run/a.mp4": mp4, "sit/b.webm": webm, "__MACOSX/run/._a.mp4": webm, "notes.md": mp4}
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in members.items():
            archive.write(path, name)
        archive.writestr("list.csv", "path,label\nrun/a.mp4,r\nsit/b.webm,s\n")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        for name, path in members.items():
            archive.add(path, name)
    return {"zip": f"file://{tmp_path}/x.zip", "tar": f"file://{tmp_path}/x.tar.gz"}


@pytest.mark.parametrize("backend", ["pyav", "decord", "torchcodec"])
@pytest.mark.parametrize(
    "chain",
    ["zip://run/a.mp4::{zip}", "tar://run/a.mp4::{tar}", "zip://run/a.mp4::simplecache::{zip}"],
)
def test_member_of_an_archive_is_decoded_as_the_file(archives, numbered_video, chain, backend):
    pytest.importorskip(backend.replace("pyav", "av"))
    url, indices = chain.format(**archives), [59, 0, 30]
    with open_video(url, backend=backend) as there, open_video(numbered_video("h264")) as here:
        assert there.frames_at(indices).data.equal(here.frames_at(indices).data)


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        ("zip://::{zip}", ["run", "sit"]),
        ("zip://*::{zip}", ["run", "sit"]),
        ("tar://::{tar}", ["run", "sit"]),
        ("zip://run::{zip}", [""]),
        ("zip://*/*.mp4::{zip}", ["run"]),
        ("zip://run/a.mp4::{zip}", [""]),
        ("simplecache::zip://::{zip}", ["run", "sit"]),
        ("zip://list.csv::{zip}", ["r", "s"]),
    ],
)
def test_archives_are_scanned(archives, tmp_path, source, labels, numbered_video):
    out, url = tmp_path / "m.parquet", source.format(**archives)
    folders = ["--labels", "folder"] if "run" in labels else []
    assert main(["scan", url, "-o", str(out), "--workers", "1", *folders]) == 0
    entries = list(read_manifest(out))
    assert [(entry.status, entry.label) for entry in entries] == [("ok", label) for label in labels]
    assert facts(entries[0]) == local_facts(tmp_path, numbered_video("h264"))
    assert [entry.source.size() for entry in entries] == [entry.bytes for entry in entries]
    assert len({entry.group for entry in entries}) == len(entries)


@pytest.mark.parametrize("ending", ["tgz", "tbz2", "txz"])
def test_packed_tar_archives_are_read_by_their_short_endings(tmp_path, numbered_video, ending):
    path, out = tmp_path / f"all.{ending}", tmp_path / "m.parquet"
    with tarfile.open(path, f"w:{ {'tgz': 'gz', 'tbz2': 'bz2', 'txz': 'xz'}[ending] }") as archive:
        archive.add(numbered_video("h264"), "run/a.mp4")
    assert main(["scan", f"tar://::file://{path}", "-o", str(out), "--workers", "1"]) == 0
    assert facts(read_manifest(out)[0]) == local_facts(tmp_path, numbered_video("h264"))


@pytest.mark.parametrize("name", ["all.zip", "all.tar", "ALL.TGZ", "all.tar.xz"])
def test_archive_named_as_a_video_is_refused_with_the_remedy(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"anything")
    kind = "zip" if "zip" in name else "tar"
    with pytest.raises(UserError, match=re.escape(f"is an archive: write {kind}://::{path}")):
        find_videos([path])


def test_members_of_two_archives_are_of_two_sources(archives):
    videos = find_videos([f"zip://::{archives['zip']}", f"tar://::{archives['tar']}"]).videos
    assert [video.group for video in videos] == [
        *("x.tar.gz/run/a", "x.tar.gz/sit/b"),
        *("x.zip/run/a", "x.zip/sit/b"),
    ]


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("zip://gone.mp4::{zip}", "no such file"),
        ("zip://a.mp4::{zip}.gone", "no such file"),
        ("zip://a.mp4::{tar}", "not a zip file"),
    ],
)
def test_archive_that_cannot_be_read_is_one_line(archives, url, cause):
    for read in (
        read_index,
        lambda url: VideoSource(url).open(),
        lambda url: VideoSource(url).read(),
    ):
        with pytest.raises(VideoDecodeError, match=cause) as caught:
            read(url.format(**archives))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "protocol", "path", "neighbour"),
    [
        ("s3://bucket/l/list.csv", "s3", "bucket/l/list.csv", "s3://bucket/l/v/a.mp4"),
        ("https://h/l/list.csv?key=1", "https", "h/l/list.csv", "https://h/l/v/a.mp4"),
        ("zip://l/list.csv::s3://b/x.zip", "zip", "l/list.csv", "zip://l/v/a.mp4::s3://b/x.zip"),
        ("zip://list.csv::file:///x.zip", "zip", "list.csv", "zip://v/a.mp4::file:///x.zip"),
        (
            "simplecache::https://h/list.csv",
            "https",
            "h/list.csv",
            "simplecache::https://h/v/a.mp4",
        ),
        ("memory:///l/list.csv", "memory", "/l/list.csv", "memory:///l/v/a.mp4"),
    ],
)
def test_chained_urls_are_taken_apart_and_put_together(url, protocol, path, neighbour):
    assert "".join(split_url(url)) == url
    assert (protocol_of(url), path_of(url)) == (protocol, path)
    assert beside(url, "./v/a.mp4") == neighbour
    assert beside(url, "memory://b.mp4") == "memory://b.mp4"


# --- servers without range requests ---


@pytest.fixture
def plain_web(tmp_path, numbered_video):
    """A server that sends whole files only, of a video too large for one block of fsspec and a shard of it."""
    pytest.importorskip("aiohttp")
    folder = tmp_path / "plain"
    folder.mkdir()
    content = numbered_video("h264").read_bytes()
    box = (12 * 2**20).to_bytes(4, "big") + b"free" + bytes(12 * 2**20 - 8)  # readers skip it
    moov = content.rindex(b"moov") - 4
    (folder / "a.mp4").write_bytes(content[:moov] + box + content[moov:])
    (folder / "list.csv").write_text("path,label\na.mp4,run\n")
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        archive.write(numbered_video("h264"), "a.mp4")
        archive.writestr("rest", random.Random(1).randbytes(12 * 2**20))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_server_without_ranges_is_named_with_the_remedy(plain_web, tmp_path, capsys):
    out = tmp_path / "m.parquet"
    assert main(["scan", f"{plain_web}/list.csv", "-o", str(out), "--workers", "1"]) == 1
    (entry,) = read_manifest(out)
    assert "does not serve parts of files" in entry.reason
    assert "simplecache::" in entry.reason
    with pytest.raises(VideoDecodeError, match="does not serve parts of files"):
        VideoSource(f"{plain_web}/a.mp4", offset=100, num_bytes=50).read()


def test_server_without_ranges_is_one_line(plain_web, capfd):
    """PyAV prints each error that it cannot raise: a file that has failed must not fail again."""
    with pytest.raises(VideoDecodeError, match="does not serve parts of files"):
        read_index(f"{plain_web}/a.mp4")
    assert "PyAV library exception" not in capfd.readouterr().err


def test_archive_on_a_server_without_ranges_has_the_remedy(plain_web, tmp_path):
    url = f"zip://::{plain_web}/all.zip"
    with pytest.raises(UserError, match="does not serve parts of files") as caught:
        find_videos([url])
    remedy = str(caught.value).rpartition(" ")[2]
    assert "\n" not in str(caught.value)
    (video,) = find_videos([remedy]).videos
    assert read_index(video.path).info.num_frames == 60


@pytest.mark.parametrize("name", ["a.mp4", "list.csv"])
def test_remedy_for_a_server_without_ranges_works(plain_web, tmp_path, name):
    out = tmp_path / "m.parquet"
    assert main(["scan", f"simplecache::{plain_web}/{name}", "-o", str(out), "--workers", "1"]) == 0
    (entry,) = read_manifest(out)
    assert entry.num_frames == 60
