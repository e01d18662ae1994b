"""Whatever a server or a disk does, a fetch installs the published files or reports why it cannot.

A local server offers micro under the name of a size. Its published hashes are computed from the files
in golden/micro, so everything is checked as it would be for 124M.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commands import interruptible
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.model import catalogue, checkpoint, download, published_files, tf_index

MICRO = catalogue.GOLDEN / "micro"
FILES = {name: (MICRO / name).read_bytes() for name in checkpoint.FILES}
DATA, META = FILES[checkpoint.DATA], FILES["model.ckpt.meta"]


def known_of(name: str) -> dict:
    return {"bytes": len(FILES[name]), "sha256": hashlib.sha256(FILES[name]).hexdigest()}


def facts(known: Callable[[str], dict], tensors: bool = True) -> dict:
    """golden/official.json as it would be if micro were official."""
    index = tf_index.read(MICRO / checkpoint.INDEX) if tensors else {}
    entry = {
        "files": {name: known(name) for name in FILES},
        "tensors": {name: [t.offset, t.size, f"{t.crc32c:08x}"] for name, t in index.items()},
    }
    return {"format": 1, "base_url": "http://unused", "sizes": {"micro": entry}}


def release(tmp_path: Path, known: Callable[[str], dict] = known_of, **more) -> published_files.Release:
    path = tmp_path / "official.json"
    path.write_text(json.dumps(facts(known, **more)))
    return published_files.release("micro", path)


class Server:
    """Serves files under /models/micro/; ``trouble`` may deal with a request in its stead."""

    def __init__(self):
        self.files = dict(FILES)
        self.trouble: Callable = lambda request, name, nth: False
        self.requests: list[tuple[str, str | None]] = []
        self.conditions: list[str] = []
        self.honours_range = True
        self.version: Callable[[bytes], dict] = lambda data: {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"'
        }
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                name = self.path.rpartition("/")[2]
                outer.requests.append((name, self.headers.get("Range")))
                if "If-Range" in self.headers:
                    outer.conditions.append(self.headers["If-Range"])
                nth = sum(asked == name for asked, _ in outer.requests)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    if not outer.trouble(self, name, nth):
                        outer.serve(self, name)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/models"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def serve(self, request, name: str, upto: int | None = None, data: bytes | None = None) -> None:
        """A file as asked for, range and all; upto: bytes of the body before the connection is cut."""
        data = self.files[name] if data is None else data
        headers, start = self.version(data), 0
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = request.headers.get("If-Range") in (None, *headers.values())
        if self.honours_range and asked and same:
            start = int(asked[1])
        if asked and start >= len(data):
            return answer(request, 416, {"Content-Range": f"bytes */{len(data)}"})
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return answer(request, 206 if start else 200, headers, data[start:], upto)


def answer(request, status: int, headers: dict, body: bytes = b"", upto: int | None = None) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": len(body), **headers}.items():
        request.send_header(name, str(value))
    request.end_headers()
    request.wfile.write(body[:upto])
    request.wfile.flush()
    if upto is not None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.shutdown(2)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()
    server.thread.join()


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PARITY_HOME", str(tmp_path / "home"))


@pytest.fixture
def get(server, tmp_path):
    """Fetch micro from the server without waiting; keeps the waits that were asked for."""

    def run(
        what: published_files.Release | None = None, url: str = server.url, report=lambda *_: None
    ) -> list[str]:
        return download.fetch(what or release(tmp_path), url, report, run.waits.append)

    run.waits = []
    run.place = tmp_path / "home" / "models" / "micro"
    run.staging = tmp_path / "home" / "models" / ".micro.partial"
    return run


def assert_in_place(get) -> None:
    assert {path.name: path.read_bytes() for path in get.place.iterdir()} == FILES
    assert not get.staging.exists()


def test_what_is_published_of_124m_is_complete():
    what = published_files.release("124M")
    assert all(known.bytes and known.sha256 for known in what.files.values())
    assert list(what.files) == list(checkpoint.FILES)
    shapes = checkpoint.variable_shapes(what.hparams)
    assert what.tensors.keys() == shapes.keys()
    assert len(shapes) == 148
    assert all(what.tensors[name].size == 4 * np.prod(shape) for name, shape in shapes.items())
    ends = sorted((t.offset, t.offset + t.size) for t in what.tensors.values())
    assert [end for _, end in ends[:-1]] == [start for start, _ in ends[1:]]
    assert ends[-1][1] == what.files[checkpoint.DATA].bytes


@pytest.mark.parametrize("size", catalogue.OFFICIAL)
def test_what_is_published_of_a_size_fits_its_shape(size):
    what = published_files.release(size)
    n_params = sum(int(np.prod(s)) for s in checkpoint.variable_shapes(what.hparams).values())
    assert what.files[checkpoint.DATA].bytes == 4 * n_params
    assert all(what.files[name].sha256 for name in ("checkpoint", "encoder.json", "vocab.bpe"))
    assert published_files.read().base_url.startswith("https://openaipublic.")


def test_the_published_facts_are_the_reference_s(reference):
    given = json.loads((reference / "124M_ckpt_index_tensors.json").read_text())
    tensors = published_files.release("124M").tensors
    for entry in given:
        found = tensors[entry["name"].removeprefix("model/")]
        assert found[:3] == (entry["offset"], entry["size"], int(entry["crc32c"], 16))
        assert tf_index.unmask(int(entry["crc32c_masked"], 16)) == found.crc32c


@pytest.fixture
def reference():
    if not (where := os.environ.get("PARITY_REFERENCE_DATA")):
        pytest.skip("PARITY_REFERENCE_DATA is not set: third-party reference data")
    return Path(where)


def test_seven_files_come_and_are_put_in_place_at_once(get, server):
    seen = []

    def report(name, here, total):
        assert not get.place.exists()
        seen.append((name, here, total))

    assert get(report=report) == list(checkpoint.FILES)
    assert_in_place(get)
    assert seen[-1][1:] == (len(FILES["vocab.bpe"]),) * 2
    assert [name for name, _ in server.requests] == list(checkpoint.FILES)
    assert not get.waits


def test_what_is_there_and_right_is_not_fetched_again(get, server):
    get()
    server.requests.clear()
    assert get() == []
    assert not server.requests


@pytest.mark.parametrize("name", ["hparams.json", checkpoint.DATA, checkpoint.INDEX])
def test_a_file_that_went_bad_in_place_is_fetched_again_and_no_other(name, get, server):
    get()
    server.requests.clear()
    (get.place / name).write_bytes(flipped(FILES[name], len(FILES[name]) // 3))
    assert get() == [name]
    assert_in_place(get)
    assert [asked for asked, _ in server.requests] == [name]


@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, len(DATA) - 1), min_size=1, max_size=8))
def test_connections_cut_at_any_points_are_gone_on_with(cuts):
    with fresh() as (get, server):
        left = iter(cuts)

        def trouble(request, name, nth):
            upto = next(left, None) if name == checkpoint.DATA else None
            if upto is not None:
                server.serve(request, name, upto=upto)
            return upto is not None

        server.trouble = trouble
        try:
            get()
        except CannotJudge as error:  # six cuts in a row that brought nothing
            assert "without a new byte" in str(error)  # noqa: PT017
            assert len(cuts) >= download.TRIES
            get()
        assert_in_place(get)


@contextlib.contextmanager
def fresh():
    """A server and a home of their own, for tests that hypothesis repeats."""
    server = Server()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARITY_HOME", folder)

        def get(what=None):
            return download.fetch(what or release(Path(folder)), server.url, wait=lambda seconds: None)

        get.place = Path(folder) / "models" / "micro"
        get.staging = Path(folder) / "models" / ".micro.partial"
        yield get, server
    server.http.shutdown()
    server.http.server_close()
    server.thread.join()


def cut_first(server, name, upto):
    """The first request for name is cut off after upto bytes."""

    def trouble(request, asked, nth):
        if asked == name and nth == 1:
            server.serve(request, asked, upto=upto)
            return True
        return False

    return trouble


def test_a_resumed_download_asks_for_the_rest_and_only_for_it(get, server):
    server.trouble = cut_first(server, checkpoint.DATA, 1_000_000)
    get()
    ranges = [asked for name, asked in server.requests if name == checkpoint.DATA]
    assert ranges[0] is None
    assert server.conditions == [server.version(DATA)["ETag"]]  # only of this very version
    start = int(ranges[1].removeprefix("bytes=").removesuffix("-"))
    assert 900_000 <= start <= 1_000_000
    assert len(ranges) == 2
    assert get.waits == [1.0]
    assert_in_place(get)


def test_a_server_that_ignores_ranges_does_not_corrupt(get, server):
    server.honours_range = False
    server.trouble = cut_first(server, checkpoint.DATA, 1_000_000)
    get(release(get.place.parent.parent.parent, lambda name: {}))  # no hash would find it
    assert_in_place(get)
    assert [name for name, _ in server.requests].count(checkpoint.DATA) == 2


@pytest.mark.parametrize("versions", ["etag", "date", "weak", "none", "constant"])
def test_a_file_that_changed_between_attempts_is_started_over(versions, get, server):
    """Not a byte of the old version may end up in the new one, whatever the server says of versions."""
    server.version = {
        "etag": server.version,
        "date": lambda data: {"Last-Modified": f"Mon, 23 Nov 2026 10:00:{data[-1] % 60:02} GMT"},
        "weak": lambda data: {"ETag": 'W/"same"'},
        "none": lambda data: {},
        "constant": lambda data: {"ETag": '"same"'},  # a lie: only the hash can tell
    }[versions]
    old = bytes(255 - byte for byte in DATA)

    def trouble(request, name, nth):
        if name == checkpoint.DATA and nth == 1:
            server.serve(request, name, upto=1_000_000, data=old)
            return True
        return False

    server.trouble = trouble
    get()
    assert_in_place(get)


def test_a_part_of_another_file_sent_for_the_rest_is_refused(get, server):
    """206 with another ETag, or from another byte, is not the rest of what is here."""
    server.trouble = cut_first(server, checkpoint.DATA, 1_000_000)
    first = server.trouble

    def trouble(request, name, nth):
        if name == checkpoint.DATA and nth in (2, 3):
            start = int(request.headers["Range"][6:-1]) if request.headers["Range"] else 0
            if not start:
                return False
            wrong = {"ETag": '"other"'} if nth == 2 else {}
            span = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
            answer(request, 206, wrong | span, bytes(len(DATA) - start))
            return True
        return first(request, name, nth)

    server.trouble = trouble
    get(release(get.place.parent.parent.parent, lambda name: {}))
    assert_in_place(get)


def test_the_wrong_span_is_not_appended(get, server):
    first = cut_first(server, checkpoint.DATA, 1_000_000)

    def trouble(request, name, nth):
        if name == checkpoint.DATA and nth == 2:
            start = int(request.headers["Range"][6:-1])
            span = {"Content-Range": f"bytes 5-{len(DATA) - start + 4}/{len(DATA)}"}
            answer(request, 206, server.version(DATA) | span, DATA[5 : len(DATA) - start + 5])
            return True
        return first(request, name, nth)

    server.trouble = trouble
    what = release(get.place.parent.parent.parent, lambda name: {}, tensors=False)
    get(what)
    assert_in_place(get)


def test_a_partial_file_longer_than_the_file_is_started_over(get, server):
    get.staging.mkdir(parents=True)
    part = get.staging / f"{checkpoint.DATA}.part"
    part.write_bytes(DATA + b"more")
    url = f"{server.url}/micro/{checkpoint.DATA}"
    download.remember(part, url, server.version(DATA)["ETag"])
    get()
    assert_in_place(get)


def test_a_partial_file_from_another_address_is_not_gone_on_with(get, server):
    get.staging.mkdir(parents=True)
    part = get.staging / f"{checkpoint.DATA}.part"
    part.write_bytes(bytes(1000))
    download.remember(part, "http://elsewhere/data", server.version(DATA)["ETag"])
    get(release(get.place.parent.parent.parent, lambda name: {}))
    assert_in_place(get)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("name", checkpoint.FILES)
@settings(max_examples=4)
@given(place=st.floats(0, 1, exclude_max=True))
def test_one_flipped_byte_anywhere_is_named_and_refused(name, place):
    with fresh() as (get, server):
        server.files[name] = flipped(FILES[name], int(place * len(FILES[name])))
        with pytest.raises(CannotJudge, match=f"{re.escape(name)}: SHA-256 is .* removed"):
            get()
        assert not get.place.exists()
        assert not list(get.staging.glob(f"{name}*"))
        server.files[name] = FILES[name]
        get()  # and what had come of the others was kept
        assert_in_place(get)


@pytest.mark.parametrize("name", [checkpoint.DATA, checkpoint.INDEX, "hparams.json"])
@settings(max_examples=8)
@given(place=st.floats(0, 1, exclude_max=True))
def test_without_published_hashes_the_index_s_checksums_find_it(name, place):
    """As for 774M: each byte of data is under a tensor's CRC32C, each of the index under a block's."""
    with fresh() as (get, server):
        server.files[name] = flipped(FILES[name], int(place * len(FILES[name])))
        what = release(get.place.parent.parent, lambda name: {}, tensors=False)
        what = msgspec.structs.replace(what, hparams=checkpoint.read_hparams(MICRO / "hparams.json"))
        try:
            get(what)
        except CannotJudge as error:
            assert name in str(error)  # noqa: PT017
            assert not get.place.exists()
            assert not (get.staging / name).exists()
        else:  # a byte that nothing depends on
            assert same_meaning(name, server.files[name])


def same_meaning(name: str, data: bytes) -> bool:
    """Whether an altered file still says what micro's says: spaces, or a footer's unused bytes."""
    if name == checkpoint.INDEX:
        path = Path(checkpoint.home()) / "x.index"
        path.write_bytes(data)
        return tf_index.read(path) == tf_index.read(MICRO / checkpoint.INDEX)
    path = Path(checkpoint.home()) / "x.json"
    path.write_bytes(data)
    return name == "hparams.json" and checkpoint.read_hparams(path) == checkpoint.read_hparams(
        MICRO / "hparams.json"
    )


def test_a_damaged_tensor_is_named(get, server):
    tensor = tf_index.read(MICRO / checkpoint.INDEX)["h2/mlp/c_fc/w"]
    server.files[checkpoint.DATA] = flipped(DATA, tensor.offset + tensor.size - 1)
    with pytest.raises(CannotJudge, match=r"1 tensors do not match their CRC32C: model/h2/mlp/c_fc/w"):
        get(release(get.place.parent.parent.parent, lambda name: {}, tensors=False))


def test_tensors_that_are_not_the_published_ones_are_refused(get, server, tmp_path):
    """The index and the data agree with each other, but not with what is published."""
    what = release(tmp_path, lambda name: {})
    name, tensor = next(iter(what.tensors.items()))
    what.tensors[name] = tensor._replace(crc32c=tensor.crc32c ^ 1)
    with pytest.raises(CannotJudge, match=f"index: places model/{name} elsewhere"):
        get(what)


def test_hparams_of_another_size_are_refused(get, server, tmp_path):
    what = release(tmp_path, lambda name: {})
    hparams = checkpoint.read_hparams(MICRO / "hparams.json")
    with pytest.raises(CannotJudge, match=r"hparams\.json: says HParams.*n_layer=4"):
        get(msgspec.structs.replace(what, hparams=hparams._replace(n_layer=12)))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: b""])
def test_a_wrong_size_is_named_before_the_download(change, get, server):
    server.files["model.ckpt.meta"] = change(META)
    served = []
    with pytest.raises(CannotJudge, match=rf"model\.ckpt\.meta: has [\d,]+ bytes.* {len(META):,}"):
        get(report=lambda name, here, total: served.append(name))
    assert "model.ckpt.meta" not in served
    assert not get.place.exists()


def test_a_redirect_is_followed_and_a_loop_of_them_refused(get, server):
    def once(request, name, nth):
        if "moved" in request.path:
            return False
        return answer(request, 302, {"Location": f"/models/moved/{name}"}) or True

    server.trouble = once
    get()
    assert_in_place(get)
    shutil.rmtree(get.place)
    server.trouble = lambda request, name, nth: (
        answer(request, 302, {"Location": f"/models/micro/{name}?{nth}"}) or True
    )
    server.requests.clear()
    with pytest.raises(CannotJudge, match="more than 5 redirects"):
        get()
    assert len(server.requests) <= 7


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_refusal_is_said_at_once(status, get, server):
    server.trouble = lambda request, name, nth: answer(request, status, {}) or True
    with pytest.raises(CannotJudge, match=f"/micro/checkpoint: HTTP {status} .*right address"):
        get()
    assert not get.waits
    assert not get.place.exists()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_passing_failure_is_tried_again_with_growing_waits(status, get, server):
    server.trouble = lambda request, name, nth: nth <= 3 and (answer(request, status, {}) or True)
    get()
    assert_in_place(get)
    assert get.waits[:3] == [1.0, 1.0, 2.0] or get.waits[:3] == [1.0, 2.0, 4.0]
    server.trouble = lambda request, name, nth: answer(request, status, {}) or True
    shutil.rmtree(get.place)
    with pytest.raises(CannotJudge, match=f"gave up after {download.TRIES} attempts.*HTTP {status}"):
        get()


def test_compressed_content_is_refused(get, server):
    server.trouble = lambda request, name, nth: (
        answer(request, 200, {"Content-Encoding": "gzip"}, b"\x1f\x8b") or True
    )
    with pytest.raises(CannotJudge, match="compresses it"):
        get()


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1/x", "http://"])
def test_an_address_that_is_none_is_said_at_once(url, get):
    with pytest.raises(CannotJudge, match="not an address"):
        get(url=url)
    assert not get.waits


def test_nobody_listening_is_given_up_on(get, server):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(CannotJudge, match=r"gave up after 6 attempts"):
        get()
    assert get.waits == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_disk_that_fills_up_keeps_what_came(get, server, monkeypatch):
    """The kernel's own ENOSPC: the partial file leads to /dev/full."""
    unlink = Path.unlink

    def keep(path, **kwargs):
        if not path.is_symlink():
            unlink(path, **kwargs)

    get.staging.mkdir(parents=True)
    (get.staging / f"{checkpoint.DATA}.part").symlink_to("/dev/full")
    monkeypatch.setattr(Path, "unlink", keep)
    with pytest.raises(CannotJudge, match=r"cannot be written \(No space left on device\).*kept"):
        get()
    assert (get.staging / "encoder.json").read_bytes() == FILES["encoder.json"]
    assert not get.place.exists()
    monkeypatch.undo()
    monkeypatch.setenv("PARITY_HOME", str(get.place.parent.parent))
    (get.staging / f"{checkpoint.DATA}.part").unlink()
    get()
    assert_in_place(get)
    assert [name for name, _ in server.requests].count("encoder.json") == 1


def test_a_disk_too_full_is_said_before_the_download(get, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(CannotJudge, match=r"bytes are needed and 1,000,000 are free"):
        get()
    assert not server.requests


def test_two_fetches_at_once_are_one_too_many(get):
    with download.exclusive(get.place), pytest.raises(CannotJudge, match="another parity fetch"):
        get()


COMMAND = (sys.executable, "-c", "from gpt2_parity.cli import main; main()")
PROGRAM = """
import sys
from pathlib import Path
from gpt2_parity.model import download, published_files
release = published_files.release("micro", Path(sys.argv[1]))
download.fetch(release, sys.argv[2], wait=lambda seconds: None)
"""


def test_killed_at_ten_random_points_and_gone_on_with_gives_identical_files(get, server, tmp_path):
    """A process of its own each time, ended by SIGKILL when the server has sent so much of the data."""
    release(tmp_path)
    rng = random.Random(20261123)
    points = sorted(rng.sample(range(1, len(DATA)), 10))
    before_last = points[-2]  # where the last of the ten goes on
    reached, killed = threading.Event(), threading.Event()
    part = get.staging / f"{checkpoint.DATA}.part"
    sent = []

    def trouble(request, name, nth):
        if name != checkpoint.DATA or not points:
            return False
        start = int((request.headers["Range"] or "bytes=0-")[6:-1])
        sent.append(start)
        headers = server.version(DATA)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"
        request.send_response(206 if start else 200)
        for key, value in {"Content-Length": len(DATA) - start, **headers}.items():
            request.send_header(key, str(value))
        request.end_headers()
        request.wfile.write(DATA[start : points[0]])
        request.wfile.flush()
        reached.set()
        assert killed.wait(60)
        request.close_connection = True
        return True

    server.trouble = trouble
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "official.json"), server.url]
    for _ in range(10):
        reached.clear(), killed.clear()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert reached.wait(60), process.stderr.read()
        kept = (
            points[0] - 2 * download.CHUNK
        )  # what of it must be on disk: not the chunk that is coming in
        for _ in range(6000):
            if part.exists() and part.stat().st_size >= kept:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not get.place.exists()
        del points[0]
        killed.set()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_in_place(get)
    assert sent == sorted(sent)
    assert sent[-1] >= before_last - 2 * download.CHUNK  # it did go on, and did not start over


def test_ctrl_c_says_that_it_can_be_gone_on_with_and_it_can(server, tmp_path):
    """The command itself, stalled by the server: exit code 2, and later only the rest is asked for."""
    over = threading.Event()
    server.files["encoder.json"] = data = bytes(1_042_301)  # of the size that OpenAI's has, and not it

    def trouble(request, name, nth):
        if (name, nth) != ("encoder.json", 1):
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.send_header("ETag", server.version(data)["ETag"])
        request.end_headers()
        request.wfile.write(data[:200_000])
        request.wfile.flush()
        assert over.wait(60)
        request.close_connection = True
        return True

    server.trouble = trouble
    command = [*COMMAND, "fetch", "124M", "--base-url", server.url]
    process = subprocess.Popen(
        interruptible("fetch", "124M", "--base-url", server.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    staging = tmp_path / "home" / "models" / ".124M.partial"
    part = staging / "encoder.json.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate()
    over.set()
    assert process.returncode == 2, words
    assert "interrupted" in words
    assert "run the same command to resume" in words
    kept = part.stat().st_size
    assert kept > 0
    assert (staging / "checkpoint").read_bytes() == FILES["checkpoint"]  # micro's is the official one
    server.requests.clear()
    server.trouble = lambda request, name, nth: False
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert server.requests == [("encoder.json", f"bytes={kept}-"), ("encoder.json", None)]
    assert again.returncode == 2
    assert "encoder.json: SHA-256 is" in again.stderr
    assert not part.exists()


def test_the_address_may_come_from_the_environment_and_an_unknown_size_is_refused(server, tmp_path):
    server.trouble = lambda request, name, nth: answer(request, 404, {}) or True
    for size, message in {
        "124M": f"{server.url}/124M/checkpoint: HTTP 404",
        "125M": "expected one of",
    }.items():
        done = subprocess.run(
            [*COMMAND, "fetch", size],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PARITY_BASE_URL": server.url},
        )
        assert done.returncode == 2
        assert message in done.stderr.replace("\n", "")
