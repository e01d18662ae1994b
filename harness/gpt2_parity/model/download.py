"""Download an official checkpoint: resumable, checksummed, installed atomically.

The seven files are downloaded one after the other into a temporary folder beside the final one. A
partial file is kept as NAME.part; NAME.part.json records which version of the file it is (the server's
ETag or date). So the next attempt, or the next run, requests the rest of that version, or starts over
if the server has another one. A file is accepted only if its size and hash are the published ones, and
the folder only if hparams, index and every tensor's CRC32C agree.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
import urllib3

from gpt2_parity.contract.architecture import variable_shapes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, digest, locks
from gpt2_parity.model import checkpoint, tf_index, tf_variables
from gpt2_parity.model.published_files import PublishedFile, Release

TRIES = 6  # attempts in a row without a new byte before giving up
LONGEST_WAIT = 30.0  # seconds between two attempts
TIMEOUT = (10.0, 60.0)  # seconds to connect, and to wait for a byte
CHUNK = 1 << 16
NO_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)

Report = Callable[[str, int, int | None], None]  # file, bytes downloaded, bytes in total
Wait = Callable[[float], None]


class Retry(Exception):
    """This attempt failed, but another one may succeed."""


def fetch(
    release: Release,
    base_url: str,
    report: Report = lambda name, here, total: None,
    wait: Wait = time.sleep,
) -> list[str]:
    """Download a release into the cache and verify it. Correct files that are there already are kept.

    Returns the names of the downloaded files. Raises CannotJudge, naming the file, if the server does
    not deliver it, if it is not the published file (it is removed), or if the disk is full (the partial
    file is kept).
    """
    target = checkpoint.home() / "models" / release.name
    staging = target.with_name(f".{release.name}.partial")
    try:
        with exclusive(target):
            folder = target if target.is_dir() else staging
            wanted = list(wrong_files(folder, release)) if folder.is_dir() else list(checkpoint.FILES)
            staging.mkdir(parents=True, exist_ok=True)
            room(staging, [release.files[name] for name in wanted])
            for name in wanted:
                url = f"{base_url.rstrip('/')}/{release.name}/{name}"
                obtain(url, staging / f"{name}.part", release.files[name], report, wait)
                (staging / f"{name}.part").replace(folder / name)
                sidecar(staging / f"{name}.part").unlink(missing_ok=True)
            if wrong := wrong_files(folder, release):
                for name in wrong:
                    (folder / name).unlink(missing_ok=True)
                reasons = "; ".join(f"{name}: {why}" for name, why in wrong.items())
                kept = "nothing was installed" if folder is staging else "the other files stay"
                raise CannotJudge(f"{base_url}: {reasons}. Removed; {kept}")
            if folder is staging:
                staging.rename(target)
            else:
                shutil.rmtree(staging)
    except OSError as error:  # from the disk; network errors are handled where they occur
        raise CannotJudge(
            f"{error.filename or staging}: cannot be written ({error.strerror}). "
            "The partial file is kept: make room and run the same command again"
        ) from error
    return wanted


def describe_verification(release: Release) -> str:
    """A sentence on what a release was verified with, and on which files nothing is published."""
    hashed = [name for name, published in release.files.items() if published.sha256]
    sized = [
        name for name, published in release.files.items() if published.bytes and not published.sha256
    ]
    neither = [name for name, published in release.files.items() if published == PublishedFile()]
    parts = [f"SHA-256 as published: {', '.join(hashed)}"] * bool(hashed)
    parts += [f"only the size is published: {', '.join(sized)}"] * bool(sized)
    parts += [f"nothing is published: {', '.join(neither)}"] * bool(neither)
    published = " and as published" if release.tensors else "; no tensor's CRC32C is published"
    return "; ".join([*parts, f"every tensor's CRC32C as in the index{published}"])


@contextlib.contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Hold the lock for writing a release. Raises CannotJudge if another process holds it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with locks.lock(target.with_name(f".{target.name}.lock")) as held:
        if held is False:
            raise CannotJudge(f"{target}: another parity fetch is writing it; wait for it")
        yield


def room(folder: Path, files: list[PublishedFile]) -> None:
    """Raise CannotJudge if the disk has no room for the rest of the files."""
    here = sum(path.stat().st_size for path in folder.glob("*.part"))
    needed = sum(published.bytes or 0 for published in files) - here
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CannotJudge(
            f"{folder}: {needed:,} bytes are needed and {free:,} are free; make room there "
            "or set PARITY_HOME to a folder on another disk"
        )


def obtain(url: str, part: Path, published: PublishedFile, report: Report, wait: Wait) -> None:
    """Download one file and check it. If it is wrong twice, remove it and raise CannotJudge."""
    for _ in range(2):  # the transfer may have damaged it, so try once more from the start
        download(url, part, published, report, wait)
        wrong = differs(part, published)
        if not wrong:
            return
        forget(part)
    raise CannotJudge(f"{url}: {wrong}, twice. It was removed; is this the right address?")


def download(url: str, part: Path, published: PublishedFile, report: Report, wait: Wait) -> None:
    """Try until the file is complete. Raises CannotJudge after TRIES attempts without a new byte."""
    failures, furthest = 0, -1
    with requests.Session() as session:
        session.max_redirects = 5
        while True:
            try:
                transfer(session, url, part, published, report)
                return
            except requests.TooManyRedirects as error:
                raise CannotJudge(f"{url}: more than 5 redirects") from error
            except NO_ADDRESS as error:
                raise CannotJudge(f"{url}: not an address to download from ({error})") from error
            except (Retry, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                here = length(part)
                failures = 1 if here > furthest else failures + 1
                furthest = max(furthest, here)
                if failures >= TRIES:
                    raise CannotJudge(
                        f"{url}: gave up after {failures} attempts without a new byte ({error}). "
                        "The partial file is kept: run the same command to resume"
                    ) from error
                wait(min(LONGEST_WAIT, 2.0 ** (failures - 1)))


def transfer(
    session: requests.Session, url: str, part: Path, published: PublishedFile, report: Report
) -> None:
    """Request the rest of a file once. Raises Retry if it ends early, CannotJudge for a wrong size."""
    version = remembered(part, url)
    here = length(part) if version else 0  # a file of unknown version is of no use
    if here and here == published.bytes:
        return
    headers = {"Accept-Encoding": "identity"}
    if here and version:
        headers |= {"Range": f"bytes={here}-", "If-Range": version}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        total = accept(reply, url, part, here, version)
        if published.bytes is not None and total is not None and total != published.bytes:
            forget(part)
            raise CannotJudge(
                f"{url}: has {total:,} bytes there, the published file {published.bytes:,}"
            )
        if reply.status_code == 200:  # the whole file, so the old partial file is of no use
            forget(part)
            remember(part, url, version_of(reply))
            here = 0
        with part.open("ab") as file:
            for chunk in reply.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                here += len(chunk)
                report(part.stem, here, total)
    if total is not None and here != total:
        raise Retry(f"the connection ended after {here:,} of {total:,} bytes")


def accept(reply: requests.Response, url: str, part: Path, here: int, version: str | None) -> int | None:
    """The size of the whole file in bytes; None if the reply does not give it.

    Raises Retry for a reply that may be better next time, CannotJudge for one that will not.
    """
    if (
        reply.status_code == 416
    ):  # the server's file is no longer than our partial file, so it is another version
        forget(part)
        raise Retry("the server has no bytes after the partial file; starting over")
    if reply.status_code in (408, 429) or reply.status_code >= 500:
        raise Retry(f"HTTP {reply.status_code}")
    if reply.status_code not in (200, 206):
        raise CannotJudge(f"{url}: HTTP {reply.status_code} {reply.reason}; is this the right address?")
    if reply.headers.get("Content-Encoding", "identity") != "identity":
        raise CannotJudge(f"{url}: the server compresses it although the request forbids it")
    if reply.status_code == 200:
        size = reply.headers.get("Content-Length")
        return int(size) if size and size.isdigit() else None
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
    if not span or not here or int(span[1]) != here or version_of(reply) not in (None, version):
        forget(part)
        raise Retry("the server sent another range than was requested; starting over")
    return int(span[3])


def version_of(reply: requests.Response) -> str | None:
    """The version of a file: a strong ETag, or its modification date; None without either."""
    etag = reply.headers.get("ETag", "")
    return etag if etag.startswith('"') else reply.headers.get("Last-Modified")


def sidecar(part: Path) -> Path:
    """The file that says which version a partial file is."""
    return part.with_name(f"{part.name}.json")


def remember(part: Path, url: str, version: str | None) -> None:
    """Note the address and the version of a partial file."""
    atomic.write_text(sidecar(part), json.dumps({"url": url, "version": version}))


def remembered(part: Path, url: str) -> str | None:
    """The version of a partial file from this address; None if it is not certain."""
    try:
        note = json.loads(sidecar(part).read_text(encoding="utf-8"))
        return note["version"] if note["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(part: Path) -> None:
    """Remove a partial file and its note."""
    part.unlink(missing_ok=True)
    sidecar(part).unlink(missing_ok=True)


def length(part: Path) -> int:
    """The size of a partial file in bytes; 0 if there is none."""
    return part.stat().st_size if part.exists() else 0


def differs(path: Path, published: PublishedFile) -> str:
    """How a file differs from what is published about it; "" if it does not."""
    if not path.is_file() or not path.stat().st_size:
        return "missing or empty"
    if published.bytes is not None and path.stat().st_size != published.bytes:
        return f"has {path.stat().st_size:,} bytes, the published file {published.bytes:,}"
    if published.sha256 is not None and (found := digest.sha256(path)) != published.sha256:
        return f"SHA-256 is {found}, that of the published file {published.sha256}"
    return ""


def wrong_files(folder: Path, release: Release) -> dict[str, str]:
    """The files in a folder that are not the published ones, each with the reason.

    Besides sizes and hashes this checks that hparams are those of the release, that the index has their
    variables, and that every tensor has the CRC32C of the index and, if published, of the release.
    """
    wrong = {
        name: why
        for name, published in release.files.items()
        if (why := differs(folder / name, published))
    }
    if wrong:
        return wrong
    try:
        hparams = checkpoint.read_hparams(folder / "hparams.json")
    except CannotJudge as error:
        return {"hparams.json": str(error)}
    if release.hparams not in (None, hparams):
        return {"hparams.json": f"says {hparams}, {release.name} has {release.hparams}"}
    try:
        tensors = tf_index.read(folder / checkpoint.INDEX)
    except CannotJudge as error:
        return {checkpoint.INDEX: str(error)}
    if {name: tensor.shape for name, tensor in tensors.items()} != variable_shapes(hparams):
        return {checkpoint.INDEX: "does not have the variables and shapes that hparams.json calls for"}
    for name, tensor in release.tensors.items():
        if tensors[name][:3] != tensor[:3]:
            return {checkpoint.INDEX: f"places model/{name} elsewhere, or with another CRC32C"}
    if damaged := tf_variables.damaged(folder / checkpoint.DATA, tensors):
        named = ", ".join(f"model/{name}" for name in damaged[:3])
        return {checkpoint.DATA: f"{len(damaged)} tensors do not match their CRC32C: {named}"}
    return {}
