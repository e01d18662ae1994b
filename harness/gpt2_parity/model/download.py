"""Downloading an official checkpoint: gone on with where it stopped, proven, then put in place.

The seven files come one after the other into a folder beside their place. A file that is cut
off keeps what came (NAME.part) and remembers which version of the file that was
(NAME.part.json: the server's ETag or date), so that the next attempt, or the next run,
asks for the rest of that very version and starts over where the server has another. A file is
taken only when its size and hash are the published ones, and the folder only when hparams,
index and every tensor's CRC32C fit together.
"""

import contextlib
import fcntl
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import requests
import urllib3

from gpt2_parity.contract.architecture import HParams, variable_shapes
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import atomic, digest
from gpt2_parity.model import catalogue, checkpoint, synthetic, tf_index

FACTS = catalogue.GOLDEN / "official.json"
TRIES = 6  # attempts in a row that bring nothing new, before giving up
LONGEST_WAIT = 30.0  # seconds between two attempts
TIMEOUT = (10.0, 60.0)  # seconds to connect, and without a byte
CHUNK = 1 << 16
NO_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)

Report = Callable[[str, int, int | None], None]  # file, bytes that are here, bytes in all
Wait = Callable[[float], None]


class Known(NamedTuple):
    """What is known of a file; None where nobody has published it."""

    bytes: int | None = None
    sha256: str | None = None


class Release(NamedTuple):
    """A checkpoint as it was published."""

    name: str
    files: dict[str, Known]
    tensors: dict[str, tf_index.Tensor]  # may be empty: then the index alone says what is right
    hparams: HParams | None = None


class Again(Exception):
    """This attempt failed in a way that another one may not."""


def published(size: str, facts: Path = FACTS) -> Release:
    """What golden/official.json says of a size. Raises CannotJudge where it says nothing."""
    try:
        document = json.loads(facts.read_text(encoding="utf-8"))
        entry = document["sizes"][size]
        files = {name: Known(**entry["files"][name]) for name in checkpoint.FILES}
        tensors = {
            name: tf_index.Tensor(offset, length, int(crc, 16))
            for name, (offset, length, crc) in entry.get("tensors", {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotJudge(f"{facts}: says nothing usable of {size!r} ({error!r})") from error
    return Release(size, files, tensors, synthetic.OFFICIAL.get(size))


def default_url(facts: Path = FACTS) -> str:
    """Where OpenAI publishes: the address below which are SIZE/FILE."""
    return str(json.loads(facts.read_text(encoding="utf-8"))["base_url"])


def fetch(
    release: Release,
    base_url: str,
    report: Report = lambda name, here, total: None,
    wait: Wait = time.sleep,
) -> list[str]:
    """Bring a release to its place in the cache and prove it; files that are there and right stay.

    Returns the names of the files that were downloaded. Raises CannotJudge, naming the file, for
    an address that does not answer rightly, for files that are not the published ones (they are
    removed), and for a disk that is full (what came is kept).
    """
    place = checkpoint.home() / "models" / release.name
    staging = place.with_name(f".{release.name}.partial")
    try:
        with alone(place):
            folder = place if place.is_dir() else staging
            wanted = list(proof(folder, release)) if folder.is_dir() else list(checkpoint.FILES)
            staging.mkdir(parents=True, exist_ok=True)
            room(staging, [release.files[name] for name in wanted])
            for name in wanted:
                url = f"{base_url.rstrip('/')}/{release.name}/{name}"
                obtain(url, staging / f"{name}.part", release.files[name], report, wait)
                (staging / f"{name}.part").replace(folder / name)
                sidecar(staging / f"{name}.part").unlink(missing_ok=True)
            if wrong := proof(folder, release):
                for name in wrong:
                    (folder / name).unlink(missing_ok=True)
                told = "; ".join(f"{name}: {why}" for name, why in wrong.items())
                kept = "nothing was put in place" if folder is staging else "the other files stay"
                raise CannotJudge(f"{base_url}: {told}. Removed; {kept}")
            if folder is staging:
                staging.rename(place)
            else:
                shutil.rmtree(staging)
    except OSError as error:  # of the disk; those of the network are dealt with where they happen
        raise CannotJudge(
            f"{error.filename or staging}: cannot be written ({error.strerror}). What has come is kept: "
            "make room and run the same command again"
        ) from error
    return wanted


def told(release: Release) -> str:
    """What a proven release was proven by, and which files nothing published vouches for."""
    hashed = [name for name, known in release.files.items() if known.sha256]
    sized = [name for name, known in release.files.items() if known.bytes and not known.sha256]
    neither = [name for name, known in release.files.items() if known == Known()]
    words = [f"SHA-256 as published: {', '.join(hashed)}"] * bool(hashed)
    words += [f"only the size is published: {', '.join(sized)}"] * bool(sized)
    words += [f"nothing is published: {', '.join(neither)}"] * bool(neither)
    beside = " and as published" if release.tensors else ", which nothing published vouches for"
    return "; ".join([*words, f"every tensor's CRC32C as in the index{beside}"])


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold the right to write there. Raises CannotJudge where another process holds it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = place.with_name(f".{place.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CannotJudge(f"{place}: another parity fetch is writing it; wait for it") from error
        yield


def room(folder: Path, files: list[Known]) -> None:
    """Find out before the download that the disk is too full for it."""
    here = sum(path.stat().st_size for path in folder.glob("*.part"))
    needed = sum(known.bytes or 0 for known in files) - here
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CannotJudge(
            f"{folder}: {needed:,} bytes are still to come and {free:,} are free; make room there "
            "or set PARITY_HOME to a disk that has it"
        )


def obtain(url: str, part: Path, known: Known, report: Report, wait: Wait) -> None:
    """Download one file, whole and right. Raises CannotJudge; wrong content is removed."""
    for _ in range(2):  # content that is wrong may have been spoilt on the way: once more, from nothing
        download(url, part, known, report, wait)
        wrong = differs(part, known)
        if not wrong:
            return
        forget(part)
    raise CannotJudge(f"{url}: {wrong}, twice. It was removed; is this the right address?")


def download(url: str, part: Path, known: Known, report: Report, wait: Wait) -> None:
    """Attempts until the file is complete; they are counted anew whenever one brings something."""
    failures, furthest = 0, -1
    with requests.Session() as session:
        session.max_redirects = 5
        while True:
            try:
                transfer(session, url, part, known, report)
                return
            except requests.TooManyRedirects as error:
                raise CannotJudge(f"{url}: redirects without end (more than 5)") from error
            except NO_ADDRESS as error:
                raise CannotJudge(f"{url}: not an address to download from ({error})") from error
            except (Again, requests.RequestException, urllib3.exceptions.HTTPError) as error:
                here = length(part)
                failures = 1 if here > furthest else failures + 1
                furthest = max(furthest, here)
                if failures >= TRIES:
                    raise CannotJudge(
                        f"{url}: gave up after {failures} attempts that brought nothing new ({error}). "
                        "What has come is kept: the same command goes on from there"
                    ) from error
                wait(min(LONGEST_WAIT, 2.0 ** (failures - 1)))


def transfer(session: requests.Session, url: str, part: Path, known: Known, report: Report) -> None:
    """One attempt at the rest of a file. Raises Again where it ends early."""
    version = remembered(part, url)
    here = length(part) if version else 0  # else nobody knows of what version it is the beginning
    if here and here == known.bytes:
        return
    headers = {"Accept-Encoding": "identity"}
    if here and version:
        headers |= {"Range": f"bytes={here}-", "If-Range": version}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        total = accept(reply, url, part, here, version)
        if known.bytes is not None and total is not None and total != known.bytes:
            forget(part)
            raise CannotJudge(f"{url}: has {total:,} bytes there, the published file {known.bytes:,}")
        if reply.status_code == 200:  # the whole file: forget the old beginning before keeping the new
            forget(part)
            remember(part, url, version_of(reply))
            here = 0
        with part.open("ab") as file:
            for chunk in reply.raw.stream(CHUNK, decode_content=False):
                file.write(chunk)
                here += len(chunk)
                report(part.stem, here, total)
    if total is not None and here != total:
        raise Again(f"cut off after {here:,} of {total:,} bytes")


def accept(reply: requests.Response, url: str, part: Path, here: int, version: str | None) -> int | None:
    """How many bytes the whole file has, if the answer says so.

    Raises Again for an answer that another attempt may improve, CannotJudge for one that it cannot.
    """
    if reply.status_code == 416:  # nothing behind what is here: it is not what the server has
        forget(part)
        raise Again("the server has nothing after what is here; starting over")
    if reply.status_code in (408, 429) or reply.status_code >= 500:
        raise Again(f"HTTP {reply.status_code}")
    if reply.status_code not in (200, 206):
        raise CannotJudge(f"{url}: HTTP {reply.status_code} {reply.reason}; is this the right address?")
    if reply.headers.get("Content-Encoding", "identity") != "identity":
        raise CannotJudge(f"{url}: the server compresses it although it was asked not to")
    if reply.status_code == 200:
        said = reply.headers.get("Content-Length")
        return int(said) if said and said.isdigit() else None
    span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
    if not span or not here or int(span[1]) != here or version_of(reply) not in (None, version):
        forget(part)
        raise Again("the server sent another part than was asked for; starting over")
    return int(span[3])


def version_of(reply: requests.Response) -> str | None:
    """What tells this version of a file from others: a strong ETag, or the date of change."""
    etag = reply.headers.get("ETag", "")
    return etag if etag.startswith('"') else reply.headers.get("Last-Modified")


def sidecar(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def remember(part: Path, url: str, version: str | None) -> None:
    atomic.write_text(sidecar(part), json.dumps({"url": url, "version": version}))


def remembered(part: Path, url: str) -> str | None:
    """The version that a partial file is the beginning of; None where that is not known for sure."""
    try:
        note = json.loads(sidecar(part).read_text(encoding="utf-8"))
        return note["version"] if note["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    sidecar(part).unlink(missing_ok=True)


def length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def differs(path: Path, known: Known) -> str:
    """What is wrong with a file by what is known of it; "" where nothing is."""
    if not path.is_file() or not path.stat().st_size:
        return "missing or empty"
    if known.bytes is not None and path.stat().st_size != known.bytes:
        return f"has {path.stat().st_size:,} bytes, the published file {known.bytes:,}"
    if known.sha256 is not None and (found := digest.sha256(path)) != known.sha256:
        return f"SHA-256 is {found}, of the published file {known.sha256}"
    return ""


def proof(folder: Path, release: Release) -> dict[str, str]:
    """The files in folder that are wrong, each with why; empty where it is the published checkpoint.

    Beyond size and hash: hparams are the size's own, the index has the variables that they call for,
    and every tensor's bytes have the CRC32C of the index and, where that is published, of the release.
    """
    wrong = {
        name: why for name, known in release.files.items() if (why := differs(folder / name, known))
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
    if damaged := tf_index.damaged(folder / checkpoint.DATA, tensors):
        named = ", ".join(f"model/{name}" for name in damaged[:3])
        return {checkpoint.DATA: f"{len(damaged)} tensors do not have their CRC32C: {named}"}
    return {}
