"""URLs as fsspec reads them, chained ones too: `zip://clips/a.mp4::https://host/all.zip` is a member of an archive."""

import posixpath
from urllib.parse import urljoin

_WEB = ("http", "https")


def is_url(path: str) -> bool:
    """Whether fsspec, not the operating system, opens this path; a `file://` alone is a local file."""
    return "://" in path and not path.startswith("file://")


def split_url(url: str) -> tuple[str, str, str]:
    """What stands before the path, the path, and the rest of the chain; put together they are the URL again.

    The path is that of the first link that has one: `simplecache::s3://bucket/a.mp4` has the path `bucket/a.mp4`.
    """
    links = url.split("::")
    first = next(number for number, link in enumerate(links) if "://" in link)
    protocol, path = links[first].split("://", 1)
    before = "::".join([*links[:first], protocol]) + "://"
    return before, path, "".join("::" + link for link in links[first + 1 :])


def protocol_of(url: str) -> str:
    """The protocol of the link that has the path: `s3` in `simplecache::s3://bucket/a.mp4`."""
    return split_url(url)[0].removesuffix("://").rsplit("::", 1)[-1]


def path_of(url: str) -> str:
    """The path in a URL, without the query of one on the web."""
    path = split_url(url)[1]
    return path.partition("?")[0].partition("#")[0] if protocol_of(url) in _WEB else path


def beside(url: str, path: str) -> str:
    """The URL of `path`, which is relative to the folder of `url`; another URL is left as it is."""
    if is_url(path):
        return path
    before, own, after = split_url(url)
    if protocol_of(url) in _WEB:
        chain, _, protocol = before.removesuffix("://").rpartition("::")
        joined = urljoin(f"{protocol}://{own}", path)
        return f"{chain}::{joined}{after}" if chain else joined + after
    folder = own.rpartition("/")[0]
    joined = posixpath.normpath(f"{folder}/{path}" if folder else path)
    return before + ("/" + joined.lstrip("/") if own.startswith("/") else joined) + after
