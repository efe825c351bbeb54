"""The bytes of a picture, from wherever it comes: a path, a URL, standard input; never too many."""

from __future__ import annotations

import base64
import gzip
import http.client
import io
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

MAX_BYTES = 50_000_000
TIMEOUT = 20.0
"""Seconds, for connecting, for each read, and for a whole download."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):(//)?", re.IGNORECASE)
_WITHOUT_SLASHES = {"data", "file", "http", "https", "ftp"}
_SPACE = b" \t\n\r\x0b\x0c"
_AS_IT_IS = "%/:=&?~+!$,;'@()*[]"  # in a URL; % because most are quoted already


class PictureError(ValueError):
    """A picture cannot be used; the message says why."""


def read_source(source: str | Path) -> tuple[bytes, str]:
    """The bytes behind a path, a URL (http, https, file or data) or `-`, and what to call them.

    Raises:
        PictureError: nothing there, more than `MAX_BYTES`, or a URL of another kind.
    """
    name = str(source)
    scheme = _scheme(name) if isinstance(source, str) else ""
    if name == "-":
        data, name = _read_standard_input(), "standard input"
    elif scheme in {"http", "https"}:
        data = _fetch(name)
    elif scheme == "data":
        data, name = _unpack(name), "the data: URL"
    elif scheme == "file":
        data = _read(_path_of(name))
    elif scheme:
        raise PictureError(
            f"{name} is no URL that can be fetched, http and https are: download it and give its "
            "path"
        )
    else:
        data = _read(Path(source))
    return _checked(data, name)


def read_url(url: str, hosts: Collection[str] = ()) -> tuple[bytes, str]:
    """The same where somebody else chose the URL: no file, and nothing from hosts not named.

    Args:
        url: data:, or http(s).
        hosts: from which to fetch, redirects included, each as it stands in a URL: in lower case,
            with the port, if one is said there.

    Raises:
        PictureError: see `read_source`; or a URL that is not to be fetched.
    """
    scheme = _scheme(url)
    if scheme == "data":
        return _checked(_unpack(url), "the data: URL")
    if scheme not in {"http", "https"}:
        raise PictureError("a picture is to be a data: URL: data:image/png;base64,...")
    if not _named(url, hosts):
        raise PictureError("pictures are not fetched from there: send a data: URL")
    return _checked(_fetch(url, hosts), url)


def _checked(data: bytes, name: str) -> tuple[bytes, str]:
    if not data:
        raise PictureError(f"{name} is empty")
    if len(data) > MAX_BYTES:
        raise PictureError(f"{name} is larger than {MAX_BYTES // 10**6} MB")
    return data, name


def local_path(source: str | Path) -> Path | None:
    """The path that a source is, if it is one; None of `-` and of URLs but those of files."""
    name = str(source)
    scheme = _scheme(name) if isinstance(source, str) else ""
    if name == "-" or scheme not in {"", "file"}:
        return None
    try:
        return (_path_of(name) if scheme else Path(source)).expanduser()
    except RuntimeError:  # no such home
        return Path(source)


def _scheme(name: str) -> str:
    """In lower case; empty for a path. A colon alone makes no URL: names of files have some too."""
    found = _SCHEME.match(name)
    if found is None:
        return ""
    scheme = found[1].lower()
    return scheme if found[2] or scheme in _WITHOUT_SLASHES else ""


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise PictureError("standard input is closed: give a path, or pipe a picture in")
    try:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise PictureError(f"standard input cannot be read: {error.strerror}") from None


def _read(path: Path) -> bytes:
    try:
        path = path.expanduser()
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        question = any(mark in str(path) for mark in " ?")
        hint = ": the picture comes first, then the prompt" if question else ""
        raise PictureError(f"there is no file {path}{hint}") from None
    except IsADirectoryError:
        raise PictureError(f"{path} is a folder: give a picture in it") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise PictureError(f"{path} cannot be read: {_reason(error)}") from None


def _path_of(url: str) -> Path:
    """Of a file: URL."""
    parts = _split(url)
    if parts.netloc.lower() not in {"", "localhost"}:
        raise PictureError(f"{url} lies on another machine: give a path, or an http(s) URL")
    return Path(urllib.request.url2pathname(parts.path))


def _unpack(url: str) -> bytes:
    """The bytes inside a data: URL."""
    comma = url.find(",")
    if comma < 0:
        raise PictureError("the data: URL has no comma: write data:image/png;base64,...")
    if len(url) - comma > 4 * MAX_BYTES:  # no encoding takes more for each byte than %xx
        return b" " * (MAX_BYTES + 1)
    data = urllib.parse.unquote_to_bytes(url[comma + 1 :])  # under one name: each is a copy
    if not url[:comma].lower().endswith(";base64"):
        return data
    data = data.translate(None, _SPACE)
    try:
        return base64.b64decode(data, validate=True)
    except ValueError:
        raise PictureError("the data: URL is no base64: copy all of it") from None


def _split(url: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
    except ValueError:
        raise PictureError(f"{url} cannot be fetched: it is no valid URL") from None
    return parts


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To http and https alone; and to some hosts alone, if they are named."""

    def __init__(self, hosts: Collection[str] | None) -> None:
        self.hosts = hosts

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: Any, newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        why = None
        if _scheme(newurl) not in {"http", "https"}:
            why = f"it redirects to {newurl}"
        elif self.hosts is not None and not _named(newurl, self.hosts):
            why = "it redirects to a server that is not to be asked"
        if why is not None:
            fp.close()  # which nobody else would
            raise urllib.error.URLError(why)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _named(url: str, hosts: Collection[str]) -> bool:
    return _split(url).netloc.rpartition("@")[2].lower() in hosts


def _fetch(url: str, hosts: Collection[str] | None = None) -> bytes:
    request, opener = _request(url), urllib.request.build_opener(_Redirects(hosts))
    deadline = time.monotonic() + TIMEOUT
    data = bytearray()
    try:
        with opener.open(request, timeout=TIMEOUT) as response:
            while chunk := response.read1(1 << 16):
                data += chunk
                if len(data) > MAX_BYTES:
                    return bytes(data)
                if time.monotonic() > deadline:
                    raise TimeoutError
            encodings = ",".join(response.headers.get_all("Content-Encoding") or ())
    except TimeoutError:
        raise PictureError(f"{url} did not arrive within {TIMEOUT:g} s") from None
    except urllib.error.HTTPError as error:
        raise PictureError(f"{url} answers {error.code} {_reason(error)}") from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        if isinstance(getattr(error, "reason", error), TimeoutError):
            raise PictureError(f"{url} did not arrive within {TIMEOUT:g} s") from None
        raise PictureError(f"{url} cannot be fetched: {_reason(error)}") from None
    for encoding in reversed(encodings.split(",")):
        data = bytearray(_decompress(bytes(data), encoding.strip().lower(), url))
    return bytes(data)


def _request(url: str) -> urllib.request.Request:
    """With the user and the password of the URL where they belong, for its own server alone."""
    parts = _split(url)
    if not parts.hostname:
        raise PictureError(f"{url} cannot be fetched: it names no server")
    bare = parts._replace(
        netloc=parts.netloc.rpartition("@")[2],
        path=urllib.parse.quote(parts.path, safe=_AS_IT_IS),
        query=urllib.parse.quote(parts.query, safe=_AS_IT_IS),
        fragment="",
    )
    request = urllib.request.Request(bare.geturl(), headers={"User-Agent": "st3"})
    if parts.username is not None:
        who = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        word = base64.b64encode(who.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {word}")
    return request


def _decompress(data: bytes, encoding: str, url: str) -> bytes:
    """At most one byte more than `MAX_BYTES`, however much there is."""
    if encoding in {"", "identity"} or not data:
        return data
    if encoding not in {"gzip", "x-gzip", "deflate"}:
        raise PictureError(f"{url} answers in the encoding {encoding}: download it another way")
    try:
        if encoding != "deflate":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                return packed.read(MAX_BYTES + 1)
        # Some servers leave zlib's header out, whose first half byte is 8.
        unpacker = zlib.decompressobj(zlib.MAX_WBITS if data[0] & 15 == 8 else -zlib.MAX_WBITS)
        plain = unpacker.decompress(data, MAX_BYTES + 1)
        if len(plain) <= MAX_BYTES and not unpacker.eof:
            raise EOFError("it ends too early")
        return plain
    except (zlib.error, EOFError, OSError) as error:
        raise PictureError(f"{url} arrived damaged: {_reason(error)}") from None


def _reason(error: Any) -> str:
    """What is wrong, in one line."""
    found = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return " ".join(str(found).split())
