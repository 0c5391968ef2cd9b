"""Published weights by name (``zoo:NAME``), downloaded from their authors, verified and cached.

The zoo lists only weights whose authors publish a URL and a checksum. This project does not host any weights.
"""

import fcntl
import http.client
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from crosschannel.console import progress_in_bytes, stderr_console
from crosschannel.errors import UserError
from crosschannel.files import cache_folder, digest
from crosschannel.hub.network import connection_problem, no_connection

_TIMEOUT, _CHUNK, _MAX_ATTEMPTS = 30, 1 << 20, 3  # seconds, bytes, attempts per download


@dataclass(frozen=True)
class Entry:
    """Published weights.

    Attributes:
        url: URL at which the authors publish the weights.
        checksum: published checksum: the first digits of the SHA-256 (in the file name), or the complete SHA-1 or
            SHA-512.
        description: one-line description.
        licence: licence of the weights.
        format: import format.
    """

    url: str
    checksum: str
    description: str
    licence: str
    format: str

    @property
    def algorithm(self) -> str:
        """Hash algorithm of the checksum, as named by :mod:`hashlib`."""
        return {40: "sha1", 128: "sha512"}.get(len(self.checksum), "sha256")

    def matches(self, path: Path) -> bool:
        """Whether a file has the published checksum."""
        return digest(path, self.algorithm).startswith(self.checksum)


_TORCHVISION = "BSD-3-Clause (torchvision); trained on ImageNet"
ZOO: dict[str, Entry] = {
    "eccv16": Entry(
        "https://colorizers.s3.us-east-2.amazonaws.com/colorization_release_v2-9b330a0b.pth",
        "9b330a0b",
        "ColorNet of Zhang et al., ECCV 2016, rebalanced classification",
        "BSD-2-Clause",
        "eccv16",
    ),
    "torchvision-alexnet": Entry(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be79",
        "AlexNet (64-192-384-256-256), ImageNet labels",
        _TORCHVISION,
        "torchvision-alexnet",
    ),
    "torchvision-vgg16": Entry(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af",
        "VGG-16, ImageNet labels",
        _TORCHVISION,
        "torchvision-vgg16",
    ),
    "torchvision-vgg16_bn": Entry(
        "https://download.pytorch.org/models/vgg16_bn-6c64b313.pth",
        "6c64b313",
        "VGG-16 with BatchNorm, ImageNet labels",
        _TORCHVISION,
        "torchvision-vgg16_bn",
    ),
    "caffenet": Entry(
        "http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel",
        "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46",
        "CaffeNet (pool, then LRN), ImageNet labels",
        "unrestricted use (BVLC); trained on ImageNet",
        "caffe",
    ),
    "bvlc-alexnet": Entry(
        "http://dl.caffe.berkeleyvision.org/bvlc_alexnet.caffemodel",
        "9116a64c0fbe4459d18f4bb6b56d647b63920377",
        "AlexNet of Krizhevsky et al. (LRN, then pool), ImageNet labels",
        "unrestricted use (BVLC); trained on ImageNet",
        "caffe",
    ),
}


def weights_folder() -> Path:
    """Return the cache folder of downloaded weights."""
    return cache_folder() / "weights"


def cached_path(entry: Entry) -> Path:
    """Return the path at which the file of an entry is cached."""
    return weights_folder() / entry.url.rpartition("/")[2]


def fetch(name: str) -> Path:
    """Return the local file of an entry; download it if necessary.

    Raises:
        UserError: unknown entry; see also :func:`fetch_into`.
    """
    if name not in ZOO:
        raise UserError(f"unknown zoo entry {name!r}; available: {', '.join(ZOO)}")
    return fetch_into(cached_path(ZOO[name]), ZOO[name], f"zoo:{name}")


def fetch_into(path: Path, entry: Entry, source: str = "") -> Path:
    """Download a published file unless it exists, and verify its checksum before moving it to its path.

    Interrupted downloads are resumed.

    Args:
        path: target path.
        entry: entry of the published file.
        source: source string, for messages.

    Returns:
        The target path.

    Raises:
        UserError: there is no connection, the server refuses the download, or the checksum is wrong.
    """
    if path.is_file() and entry.matches(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_name(path.name + ".part")
    with path.with_name(path.name + ".lock").open("w") as lock:  # one rank downloads while the others wait
        fcntl.lockf(lock, fcntl.LOCK_EX)
        if path.is_file() and entry.matches(path):
            return path
        problem = connection_problem(entry.url)
        if problem:
            raise no_connection(entry.url, source, problem)
        stderr_console().print(f"downloading {entry.url} to {path}")
        _download(entry.url, partial_file)
        if not entry.matches(partial_file):
            checksum, algorithm = digest(partial_file, entry.algorithm)[:16], entry.algorithm.upper()
            partial_file.unlink()
            raise UserError(
                f"{entry.url} is not the file that its authors published: its {algorithm} starts with {checksum}, not "
                f"{entry.checksum[:16]}"
            )
        partial_file.replace(path)
    return path


def _download(url: str, partial_file: Path) -> None:
    """Download to ``partial_file``, resuming from its current size."""
    for attempt in range(1, _MAX_ATTEMPTS + 1):
        offset = partial_file.stat().st_size if partial_file.is_file() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
                is_resumed = response.status == 206
                length = int(response.headers.get("Content-Length") or 0) + (offset if is_resumed else 0)
                bar = progress_in_bytes(url.rpartition("/")[2], length, offset if is_resumed else 0)
                with partial_file.open("ab" if is_resumed else "wb") as file, bar as advance:
                    while chunk := response.read(_CHUNK):
                        file.write(chunk)
                        advance(len(chunk))
                    file.flush()
                    os.fsync(file.fileno())
            if partial_file.stat().st_size >= length:
                return
            problem: object = f"the connection closed after {partial_file.stat().st_size} of {length} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416 and offset:  # range not satisfiable: the file is complete
                return
            problem = f"the server responded with status {error.code}"
            if error.code < 500:
                raise UserError(f"could not download {url}: {problem}") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            problem = getattr(error, "reason", error)
        if attempt == _MAX_ATTEMPTS:
            raise UserError(f"could not download {url}: {problem}; rerun the command to resume")
