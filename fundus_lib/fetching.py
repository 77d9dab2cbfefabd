"""Polite web requests: so many a second, repeated when the server stumbles, every good answer kept on disk."""

import hashlib
import io
import json
import os
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from fundus_lib.data import DataError

TEMPORARY, LONGEST_WAIT = (408, 429, 500, 502, 503, 504), 60.0  # HTTP statuses worth another try; seconds
LARGEST = 200_000_000  # bytes of one unpacked file


class Client:
    """Requests that wait their turn and are cached: one file an answer, written whole, so that a rerun asks nothing.

    per_second: requests; pause: seconds before the second try, doubled for each further one unless the server says.
    """

    def __init__(self, cache: Path, per_second: float = 3, pause: float = 1.0, tries: int = 5):
        import requests  # a third of a second that only downloads need

        self.cache, self.gap, self.pause, self.tries = Path(cache), 1 / per_second, pause, tries
        self.session, self.failures, self.requests, self.free_at = requests.Session(), requests.RequestException, 0, 0.0
        self.cache.mkdir(parents=True, exist_ok=True)

    def get(self, url: str, params: dict, check: Callable, secret: dict | None = None):
        """check(content) of the answer; `check` raises DataError for what is none (HTML with status 200, cut XML).

        secret: parameters such as a key, sent in the body of a POST with the others: in no URL, log or cache name.
        Raises DataError when no try succeeds.
        """
        file = self.cache / hashlib.sha256(json.dumps([url, params], sort_keys=True).encode()).hexdigest()
        if file.exists():
            return check(file.read_bytes())
        for attempt in range(self.tries):
            time.sleep(max(0.0, self.free_at - time.monotonic()))
            self.free_at, wait = time.monotonic() + self.gap, self.pause * 2 ** attempt
            self.requests += 1
            try:
                response = self.session.post(url, data=params | secret, timeout=60) if secret else \
                    self.session.get(url, params=params, timeout=60)
                reason, said = f"HTTP {response.status_code}", response.headers.get("Retry-After", "")
                if response.status_code == 200:
                    value, part = check(response.content), file.with_suffix(".part")
                    part.write_bytes(response.content)
                    os.replace(part, file)
                    return value
                if response.status_code not in TEMPORARY:
                    break
                wait = float(said) if said.isdigit() else wait
            except self.failures as error:
                reason = type(error).__name__  # its message may hold the whole request
            except DataError as error:
                reason = str(error)
            if attempt + 1 < self.tries:
                time.sleep(min(wait, LONGEST_WAIT))
        raise DataError(f"{url} gives no usable answer: {reason}\n  run again later; {self.cache} keeps what is there")


def xml(content: bytes, *roots: str) -> ElementTree.Element:
    """The root element. DataError for XML that is broken, declares entities, or has another root (HTML)."""
    if b"<!ENTITY" in content or b"\0" in content[:100]:
        raise DataError("XML that declares entities, or is not UTF-8, is not read")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise DataError(f"no well-formed XML ({error}); it starts with {content[:40]!r}") from None
    if root.tag.rpartition("}")[2] not in roots or root.find("ERROR") is not None:
        raise DataError(f"<{root.tag}> {(root.findtext('ERROR') or '')[:80]} instead of <{roots[0]}>")
    return root


def json_object(content: bytes) -> dict:
    """A JSON object. Raises DataError for anything else."""
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        raise DataError(f"no JSON object; it starts with {content[:40]!r}") from None


def picture(content: bytes) -> bytes:
    """The content when it is a JPEG or PNG file. Raises DataError otherwise."""
    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        raise DataError(f"no JPEG or PNG; it starts with {content[:40]!r}")
    return content


def unpacked(content: bytes, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """File name -> content of the files of a .tar.gz with such names, without folders. DataError when it is cut."""
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            return {Path(member.name).name: archive.extractfile(member).read() for member in archive
                    if member.isfile() and member.size < LARGEST and member.name.endswith(suffixes)}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"no whole .tar.gz: {error}") from None
