import functools
import http.server
import re
import threading
from pathlib import Path

import fsspec
import pytest

from videossl.__main__ import main
from videossl.data.listing import find_videos
from videossl.data.table import read_manifest
from videossl.errors import UserError

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
