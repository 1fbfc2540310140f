"""Encoders behind URLs: a real server, one that cuts, one that is gone."""

import functools
import hashlib
import http.server
import threading

import fsspec
import pytest
import torch

import videossl
from videossl.errors import UserError
from videossl.export.loading import fetched
from videossl.export.video_encoder import write_encoder_file
from videossl.models.encoder_file import SUFFIX

pytest.importorskip("aiohttp")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Counts what it gives; with `cut_at` it breaks off there, having promised the whole file."""

    num_requests, cut_at = 0, None

    def do_GET(self):
        type(self).num_requests += 1
        super().do_GET()

    def copyfile(self, source, outputfile):
        if self.cut_at is None:
            super().copyfile(source, outputfile)
        else:
            outputfile.write(source.read(self.cut_at))
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOSSL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def site(tmp_path, checkpoint, cache):
    """(address, server, handler class) of a folder with an exported file and the checkpoint it is of."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "run.pt").write_bytes(checkpoint.read_bytes())
    write_encoder_file(folder / "encoder.safetensors", videossl.load_encoder(checkpoint))
    handler = type("Counting", (Handler,), {})
    serve = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", server, handler
        server.shutdown()


def same_weights(first, second) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


@pytest.mark.parametrize(
    "name", ["run.pt", "encoder.safetensors", "encoder.safetensors?download=1"]
)
def test_a_url_is_fetched_once_and_then_read_offline(site, checkpoint, cache, name, capsys):
    address, server, handler = site
    expected = videossl.load_encoder(checkpoint)
    assert same_weights(videossl.load_encoder(f"{address}/{name}"), expected)
    assert "fetched, MiB: 1/1" in capsys.readouterr().err
    given = handler.num_requests
    assert given > 0
    server.shutdown()
    server.server_close()
    assert same_weights(videossl.load_encoder(f"{address}/{name}"), expected)
    assert handler.num_requests == given
    assert len(list((cache / "encoders").iterdir())) == 1


def test_any_protocol_of_fsspec_is_fetched(site, checkpoint, cache):
    files = fsspec.filesystem("memory")
    files.pipe_file("/models/run.pt", checkpoint.read_bytes())
    loaded = videossl.load_encoder("memory://models/run.pt")
    files.rm("/models", recursive=True)
    assert same_weights(loaded, videossl.load_encoder("memory://models/run.pt"))


def test_a_right_digest_passes_and_a_wrong_one_fails(site, checkpoint, cache):
    address, _, _ = site
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    videossl.load_encoder(checkpoint, sha256=digest)
    with pytest.raises(UserError, match=f"its SHA-256 is {digest}, expected 00"):
        videossl.load_encoder(checkpoint, sha256="00")
    with pytest.raises(UserError, match=f"its SHA-256 is {digest}, expected 00"):
        videossl.load_encoder(f"{address}/run.pt", sha256="00")
    assert list((cache / "encoders").iterdir()) == []
    videossl.load_encoder(f"{address}/run.pt", sha256=digest.upper())


def test_a_cached_file_of_another_digest_is_fetched_again(site, checkpoint):
    address, _, handler = site
    path = fetched(f"{address}/run.pt")
    path.write_bytes(b"something else")
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    before = handler.num_requests
    videossl.load_encoder(f"{address}/run.pt", sha256=digest)
    assert handler.num_requests > before
    assert path.read_bytes() == checkpoint.read_bytes()


@pytest.mark.parametrize("cut_at", [0, 100_000])
def test_a_cut_download_fails_and_keeps_nothing(site, cache, cut_at):
    address, _, handler = site
    handler.cut_at = cut_at
    with pytest.raises(UserError, match=r"cannot be fetched|was cut") as caught:
        videossl.load_encoder(f"{address}/run.pt")
    assert "\n" not in str(caught.value)
    assert list((cache / "encoders").iterdir()) == []
    handler.cut_at = None
    videossl.load_encoder(f"{address}/run.pt")


@pytest.mark.parametrize(
    "url", ["{site}/none.pt", "http://127.0.0.1:9/run.pt", "memory://none/a.pt", "nowhere://a/b.pt"]
)
def test_what_cannot_be_fetched_fails_in_one_line(site, cache, url):
    with pytest.raises(UserError, match="cannot be fetched") as caught:
        videossl.load_encoder(url.format(site=site[0]))
    assert "\n" not in str(caught.value)


def test_a_fetched_pickle_is_not_executed(site, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"format": 1, "encoder": Hostile()}, tmp_path / "site/hostile.pt")
    with pytest.raises(UserError, match="damaged or not a checkpoint"):
        videossl.load_encoder(f"{site[0]}/hostile.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../../evil.safetensors", "a%2f..%2f..%2fevil.sh", "x.exe"])
def test_remote_names_do_not_choose_places(cache, name):
    files = fsspec.filesystem("memory")
    files.pipe_file(f"/{name}", b"x")
    path = fetched(f"memory://{name}")
    assert path.parent == cache / "encoders"
    assert path.suffix in (SUFFIX, ".pt")
