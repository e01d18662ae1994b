"""Hostile and broken input: exit code 2, one line that names what and where, and unchanged folders.

The command's entry point is called in this process, because a new interpreter for each of hundreds of
inputs would take minutes. Tests that need processes of their own come last.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import commands
import huggingface_folder
from gpt2_parity import cli
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge, Target
from gpt2_parity.contract.rows import Measurement, Results, Row
from gpt2_parity.files import atomic, digest, safetensors_mmap, strict_json
from gpt2_parity.implementation import discovery, second_oracle
from gpt2_parity.model import catalogue, checkpoint, synthetic
from gpt2_parity.reference import golden
from gpt2_parity.report import files, results
from gpt2_parity.run import preparation, runner
from hostile import CASES, NO_JSON, USAGE, World, flipped, put, seal

TINY = HParams(n_vocab=16, n_ctx=8, n_embd=8, n_head=2, n_layer=1)
INDEX_FLIPS, DATA_FLIPS = 10, 5
ENTRY = "import sys; from gpt2_parity.cli import main; main()"


def parity(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command, called in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["parity", *arguments]),
        mock.patch.object(sys, "path", sys.path[:]),
        pytest.raises(SystemExit) as end,
    ):
        cli.main()
    said = [(stream.flush(), stream.buffer.getvalue().decode("utf-8"))[1] for stream in (out, err)]
    return end.value.code, *said


def listing(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything below a folder: kind and rights, size, time of change, and which file it is."""
    found = {}
    for folder, inner, outer in os.walk(root):
        for name in [*inner, *outer]:
            path = os.path.join(folder, name)
            stat = os.lstat(path)
            found[os.path.relpath(path, root)] = (
                stat.st_mode,
                stat.st_size if not os.path.isdir(path) else 0,
                stat.st_mtime_ns if not os.path.isdir(path) else 0,
                stat.st_ino,
            )
    return found


def refused(world: World, command: tuple[str, ...], named: str) -> str:
    """Run a command that must be refused as promised; returns what it said."""
    before = listing(world.root)
    code, out, err = parity(*(word.replace("{root}", str(world.root)) for word in command))
    assert code == 2, out + err
    assert "PASS" not in out
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    assert err.removesuffix("\n").isprintable(), err
    assert len(err) < 1200
    assert named in err, err
    assert cli.UNFORESEEN not in err, err
    assert listing(world.root) == before
    return err


@pytest.fixture(scope="session")
def pristine(prepared, tmp_path_factory) -> Path:
    """Whole files, to be linked into worlds: micro and its records, two other models, cached weights."""
    root = tmp_path_factory.mktemp("pristine")
    shutil.copytree(catalogue.GOLDEN / "micro", root / "golden" / "micro")
    shutil.copytree(catalogue.GOLDEN / "records" / "micro", root / "golden" / "records" / "micro")
    weights = prepared.checkpoint.weights
    (root / "home" / "weights").mkdir(parents=True)
    for path in (weights, weights.with_suffix(".sha256")):
        shutil.copy(path, root / "home" / "weights")
    synthetic.ensure(root / "generated", TINY)
    tiny = TINY._replace(n_vocab=1000, n_ctx=64)  # with micro's vocabulary
    params, micro = synthetic.generate(tiny), root / "golden" / "micro"
    huggingface_folder.write(root / "huggingface", tiny, params, tokenizer=micro)
    (root / "tmp").mkdir()
    (root / "elsewhere.bin").write_bytes(b"not what is meant")
    return root


def unexpected(*_, **__):
    raise AssertionError("the input was taken for good")


def enter(root: Path, monkeypatch) -> World:
    """Make a folder the place of golden, cache and temporary files. What is taken for good shows at once."""
    monkeypatch.setattr(catalogue, "GOLDEN", root / "golden")
    monkeypatch.setenv("PARITY_HOME", str(root / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))
    monkeypatch.setattr(second_oracle, "tensorflow", unexpected)
    monkeypatch.setattr(preparation, "fresh_case", unexpected)
    return World(root)


@pytest.fixture
def world(pristine, tmp_path, monkeypatch) -> World:
    root = shutil.copytree(pristine, tmp_path / "world", copy_function=os.link)
    return enter(root, monkeypatch)


# The inputs of hostile.py.


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_input_is_refused_in_one_line_and_leaves_nothing(name, world):
    spoil, command, named = CASES[name]
    spoil(world)
    refused(world, command, named)


def test_what_is_not_hostile_is_not_refused(world, monkeypatch):
    """Else the test above would pass for a command that refuses everything."""
    for command in (("verify", "--impl", "numpy"), ("golden", "build")):
        assert cli.UNFORESEEN in parity(*command)[2]
        assert "taken for good" in parity(*command)[2]
    for folder in (world.generated, world.huggingface):
        assert "taken for good" in parity("golden", "build", "--model", str(folder))[2]
    assert parity("golden", "verify")[0] == 0


def test_as_many_hostile_inputs_are_tried_as_the_readme_says():
    assert len(set(USAGE)) == len(USAGE)
    assert len(CASES) + len(USAGE) + INDEX_FLIPS + DATA_FLIPS > 400


@pytest.mark.parametrize("command", USAGE, ids=" ".join)
def test_what_is_said_wrongly_is_shown_the_usage(command, world):
    before = listing(world.root)
    code, out, err = parity(*command)
    assert code == 2
    assert "Traceback" not in out + err
    assert cli.UNFORESEEN not in err
    assert "Usage" in out + err or "Error" in err
    assert listing(world.root) == before


def test_flipped_bits_are_refused_without_a_manifest(world):
    """Each byte of the index, and of the data, is under a CRC32C."""
    shutil.rmtree(world.home / "weights")
    rng, tried = random.Random(20261123), set()
    for file, n, named in (
        (checkpoint.INDEX, INDEX_FLIPS, "not an intact checkpoint index"),
        (checkpoint.DATA, DATA_FLIPS, "variable model/"),
    ):
        good = (world.micro / file).read_bytes()
        for _ in range(n):
            at, bit = rng.randrange(len(good)), rng.randrange(8)
            tried.add((file, at, bit))
            put(world.micro / file, flipped(good, at, bit))
            refused(world, ("golden", "build"), f"micro/{file}: {named}")
        put(world.micro / file, good)
    assert len(tried) == INDEX_FLIPS + DATA_FLIPS


# Hypothesis: what no one thought of.


@pytest.fixture(scope="module")
def arena(pristine, tmp_path_factory):
    """One world for all examples; each puts back what it spoils."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        root = tmp_path_factory.mktemp("arena") / "world"
        shutil.copytree(pristine, root, copy_function=os.link)
        yield enter(root, monkeypatch)


@contextlib.contextmanager
def spoilt(path: Path, data: bytes):
    good = path.read_bytes()
    put(path, data)
    try:
        yield
    finally:
        put(path, good)


GOOD_HPARAMS = {"n_vocab": 1000, "n_ctx": 256, "n_embd": 128, "n_head": 4, "n_layer": 4}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(GOOD_HPARAMS)), JSON, min_size=1))
@settings(max_examples=60)
def test_any_hparams_but_the_right_ones_are_refused(arena, changes):
    raw = GOOD_HPARAMS | changes
    if raw == GOOD_HPARAMS or (raw | {"n_head": 4} == GOOD_HPARAMS and raw["n_head"] in (1, 2, 8, 16)):
        return  # the number of heads does not show in the weights; the manifest's SHA-256 holds it
    with spoilt(arena.micro / "hparams.json", json.dumps(raw).encode()):
        refused(arena, ("golden", "build"), "micro/")


@given(st.data())
@settings(max_examples=60)
def test_any_damage_to_any_file_is_refused_with_a_manifest(arena, data):
    """A slice of the file is replaced by other bytes."""
    place = data.draw(st.sampled_from([*(f"micro/{name}" for name in checkpoint.FILES),
                                       "records/micro/seed.safetensors", "records/micro/manifest.json",
                                       "records/micro/manifest.json.sha256"]))  # fmt: skip
    path = arena.root / "golden" / place
    good = path.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    bad = (
        good[:start] + data.draw(st.binary(max_size=40)) + good[start + data.draw(st.integers(0, 40)) :]
    )
    if bad != good:
        with spoilt(path, bad):
            refused(arena, ("golden", "verify"), path.name.removesuffix(".sha256"))


@given(st.text(), st.sampled_from(["--impl", "--model", "--target"]))
@settings(max_examples=60)
def test_any_text_for_a_name_is_refused_or_known(arena, text, option):
    known = {"--impl": discovery.names(), "--model": ["micro", ".", "/"], "--target": []}
    if text in known[option] or (option == "--impl" and "taken for good" in judged(option, text)):
        return  # the name of a module that is there
    if option == "--target" and all(text.partition("-")):
        return  # well-formed, so that only a run can tell that no one offers it
    refused(
        arena,
        ("verify", "--impl", "numpy", f"{option}={text}"),
        {"--impl": "implementation "}.get(option, ""),
    )


def judged(option: str, text: str) -> str:
    return parity("verify", f"{option}={text}")[2]


@given(JSON)
@settings(max_examples=40)
def test_any_other_json_is_no_manifest(arena, document):
    manifest = arena.records / "manifest.json"
    with spoilt(manifest, json.dumps(document).encode()), spoilt(arena.records / golden.SEAL, b""):
        seal(arena)
        refused(arena, ("verify", "--impl", "numpy"), "manifest.json: not")


@given(st.binary(max_size=200), st.sampled_from([0, 1]))
@settings(max_examples=50)
def test_any_bytes_for_a_safetensors_file_are_refused(arena, data, how):
    path = arena.generated / "weights.safetensors"
    bad = data if how else len(data).to_bytes(8, "little") + data
    with spoilt(path, bad):
        refused(arena, ("golden", "build", "--model", str(arena.generated)), "weights.safetensors: ")


@given(JSON)
def test_any_other_json_is_no_results(tmp_path_factory, document):
    place = tmp_path_factory.getbasetemp() / "other-results"
    place.mkdir(exist_ok=True)
    (place / results.NAME).write_text(
        json.dumps({"schema": results.SCHEMA, "rows": document, "environment": {}})
    )
    if document != []:
        with pytest.raises(CannotJudge, match=r"results\.json: "):
            results.read(place)


# Results of an earlier run.


@pytest.mark.parametrize("name", NO_JSON)
def test_results_that_are_no_json_are_refused(name, tmp_path):
    (tmp_path / results.NAME).write_bytes(NO_JSON[name])
    with pytest.raises(CannotJudge, match=r"results\.json: not"):
        results.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({"schema": value}, "not results of schema") for value in (0, 3, "2", 2.0, True, None, [2])],
        *[({"rows": value}, r"at `\$\.rows`") for value in (None, {}, "x", 1)],
        *[({"rows": [value]}, r"at `\$\.rows\[0\]") for value in (None, {}, [], {"verdict": "pass"})],
        *[({"environment": value}, r"at `\$\.environment`") for value in (None, [], "x")],
    ],
)
def test_results_of_another_form_are_refused(change, message, tmp_path):
    document = {"schema": results.SCHEMA, "rows": [], "environment": {}}
    (tmp_path / results.NAME).write_text(json.dumps(document))
    assert len(results.read(tmp_path)) == 0
    (tmp_path / results.NAME).write_text(json.dumps(document | change))
    with pytest.raises(CannotJudge, match=message):
        results.read(tmp_path)


def test_a_document_of_any_size_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(strict_json, "MOST", 1000)
    (tmp_path / "x.json").write_text("[" + " " * 997 + "]")
    assert strict_json.read(tmp_path / "x.json") == []
    (tmp_path / "x.json").write_text("[" + " " * 999 + "]")
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        strict_json.read(tmp_path / "x.json")


HOSTILE_TEXT = "\0\1\x1b[31m\x85\udc80\ud800\ufffe]]>&<script>|`\u202e"


def test_what_an_implementation_says_cannot_spoil_the_files(tmp_path):
    row = Row(HOSTILE_TEXT, "cpu", "float32", HOSTILE_TEXT, "c", "logits", HOSTILE_TEXT, "noise_units", 9.0, 8.0, None,
              "fail", "error", HOSTILE_TEXT, HOSTILE_TEXT, {"error": HOSTILE_TEXT, HOSTILE_TEXT: 1})  # fmt: skip
    files.write(Results([row], {"model": HOSTILE_TEXT}), tmp_path)
    cases = list(ET.parse(tmp_path / "junit.xml").getroot().iter("testcase"))
    assert len(cases) == 1
    shown = HOSTILE_TEXT.encode("utf-8", "replace").decode()
    assert results.read(tmp_path).evidence[0]["error"] == shown
    shown, fence, _ = (tmp_path / "report.md").read_text(encoding="utf-8").partition("```json")
    assert fence
    assert "<script>" not in shown


# A cache that cannot be used.


@pytest.mark.parametrize(
    "where", ["file", "file/below", "loop", "/proc/self", "/dev/null", "dangling/\udc80"]
)
def test_a_cache_that_cannot_be_written_is_named(where, world, monkeypatch):
    """As root, rights do not bind: these are places in which no one can make a folder."""
    put(world.root / "file", b"x")
    (world.root / "loop").symlink_to("loop")
    (world.root / "dangling").symlink_to("nowhere")
    monkeypatch.setenv("PARITY_HOME", str(world.root / where))
    place = ascii(str(world.root / where))[1:-1]
    said = refused(world, ("golden", "build"), "weights")
    assert place in said
    assert "cannot be written" in said


@pytest.mark.parametrize("text", ["", "0" * 64, "\n", b"\xff\xfe", b"\0" * 64])
def test_a_cached_file_with_another_sha256_is_not_used(text, world, monkeypatch):
    put(next(world.home.glob("weights/*.sha256")), text)
    monkeypatch.setattr(checkpoint, "convert", again)
    refused(world, ("verify", "--impl", "numpy"), "read again")


@pytest.mark.parametrize("how", ["cut", "flipped", "longer", "folder", "loop"])
def test_a_damaged_cached_file_is_not_used(how, world, monkeypatch):
    path = next(world.home.glob("weights/*.safetensors"))
    good = path.read_bytes()
    path.unlink()
    match how:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case _:
            bad = {"cut": good[:-1], "flipped": flipped(good, len(good) - 1), "longer": good + b"x"}
            put(path, bad[how])
    monkeypatch.setattr(checkpoint, "convert", again)
    refused(world, ("verify", "--impl", "numpy"), "read again")


def again(directory, *_):
    raise CannotJudge(f"{directory}: read again")


def test_a_cached_file_with_a_forged_sha256_must_still_fit(world):
    path = next(world.home.glob("weights/*.safetensors"))
    params = {name: np.array(a) for name, a in safetensors_mmap.read(path).items()}
    params["wte"][3, 3] = np.nan
    safetensors_mmap.write(path, params)
    put(path.with_suffix(".sha256"), digest.sha256(path))
    refused(world, ("verify", "--impl", "numpy"), f"{path.name}: variable model/wte has values")


def test_links_to_the_right_files_are_read(world):
    """The policy: a link in place of a file is followed; a name inside a file never leads anywhere."""
    (world.root / "aside").mkdir()
    for name in checkpoint.FILES:
        (world.micro / name).rename(world.root / "aside" / name)
        (world.micro / name).symlink_to(f"../../aside/{name}")
    before = listing(world.root)
    assert parity("golden", "verify")[0] == 0
    assert listing(world.root) == before
    put(world.root / "aside" / "vocab.bpe", b"other")
    refused(world, ("golden", "verify"), "micro/vocab.bpe: SHA-256")


def test_a_link_in_place_of_a_result_is_replaced_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "report.md").symlink_to("precious")
    files.write(Results([], {"model": "micro"}), tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "report.md").is_symlink()


# No room.


SMALL_FILES = (
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); "  # as on a full disk
)


@pytest.mark.parametrize(("room", "first"), [(1000, "run.json"), (100_000, ".safetensors")])
def test_a_full_disk_is_named_and_nothing_half_written(room, first, world, tmp_path):
    """A real process without room: for the journal, for the fresh record, and for generated weights."""
    environment = os.environ | {"TMPDIR": str(world.root / "tmp"), "PARITY_HOME": str(world.home)}
    for arguments, named in (
        (["verify", "--impl", "numpy", "--out", str(world.root / "out")], f"{first}: cannot be written"),
        (["verify", "--impl", "numpy", "--model", "shape:124M"], "weights.safetensors: cannot be written"),
    ):  # fmt: skip
        if "shape:124M" in arguments and room > 1000:
            continue  # half a gigabyte of weights need not be made twice
        before = listing(world.root)
        code = SMALL_FILES.format(room) + ENTRY
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True,
                              check=False, env=environment)  # fmt: skip
        assert done.returncode == 2, done.stdout + done.stderr
        assert named in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert cli.UNFORESEEN not in done.stderr
        left = {
            name: what
            for name, what in listing(world.root).items()
            if not os.path.isdir(world.root / name) and "/compiled/" not in name  # XLA's lock
        }
        assert left == {name: what for name, what in before.items() if name in left}


def test_a_real_full_file_system_is_named(tmp_path):
    """A tmpfs of 64 KiB in a namespace of its own, where the kernel lets us have one."""
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$1" && cd "$1" && '
        '"$2" -c "from pathlib import Path; import numpy as np; from gpt2_parity.files import safetensors_mmap;'
        "safetensors_mmap.write(Path('deep/x.safetensors'), {'x': np.ones(10**6)})\"; echo \"rc $?\"; find . -type f"
    )
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        tmp_path,
        sys.executable,
    ]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "rc " not in done.stdout:
        pytest.skip(f"no namespace for us: {done.stderr.strip()}")
    assert done.stdout == "rc 1\n"  # and no file
    assert "CannotJudge: deep/x.safetensors: cannot be written" in done.stderr
    assert "No space left on device" in done.stderr


def test_results_that_find_no_room_are_named_and_none_is_half_written(world, monkeypatch):
    """The disk fills up during the run."""
    row = Row(
        "numpy",
        "cpu",
        "float32",
        "micro",
        "",
        "logits",
        "",
        "noise_units",
        1.0,
        8.0,
        0.1,
        "pass",
        "measured",
        "",
        "",
        {},
    )
    outcome = Results([row], {"model": "micro", "cuda": "present", "seed": 1})
    monkeypatch.setattr(runner, "verify", lambda *_: outcome)
    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = parity("verify", "--impl", "numpy", "--out", str(world.root / "out"))
    assert code == 2
    assert err == f"error: {world.root}/out/results.json: cannot be written (No space left on device)\n"
    assert not (world.root / "out").exists()


def full(path, *_, **__):
    path.touch()  # as open does
    raise OSError(28, os.strerror(28))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_verdict_that_cannot_be_told_is_none():
    with open("/dev/full", "w") as output:
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, "list"], stdout=output, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: standard output")
    assert done.stderr.endswith(b": No space left on device\n")


def test_a_reader_that_goes_away_is_no_disagreement():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", ENTRY, "list"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_a_folder_that_is_gone_and_an_odd_encoding_do_no_harm(tmp_path):
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -c "$1" verify --impl "$(printf "\\351\\342\\202\\254")"'
    done = subprocess.run(["sh", "-c", script, sys.executable, ENTRY], cwd=tmp_path, capture_output=True, check=False,
                          env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: implementation '\\udce9")


def test_a_fault_of_our_own_is_one_line_too_and_not_a_disagreement(monkeypatch):
    monkeypatch.setattr("gpt2_parity.api.parse_target", lambda text: 1 // 0)
    code, _, err = parity("verify", "--impl", "numpy", "--target", "cpu-float32")
    assert code == 2
    assert err.startswith(f"error: {cli.UNFORESEEN} ZeroDivisionError")
    assert "test_hostile.py:" in err
    monkeypatch.setenv("PARITY_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        parity("verify", "--impl", "numpy", "--target", "cpu-float32")


# Several at once.

LOADER = """
import os, signal, sys
from pathlib import Path
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.model import checkpoint
if sys.argv[2]:  # killed when half of the weights are written
    def half(path, arrays, metadata):
        path.write_bytes(b"half")
        print("half", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    safetensors_mmap._save = half
    checkpoint._intact = lambda weights: False  # though another was faster
print(checkpoint.load(Path(sys.argv[1])).weights)
"""


def load(pristine: Path, home: Path, *, killed: bool = False):
    words = [str(pristine / "golden" / "micro"), "killed" * killed]
    environment = os.environ | {"PARITY_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", LOADER, *words], stdout=subprocess.PIPE, text=True, env=environment
    )


def whole(pristine: Path, home: Path) -> bool:
    """The cache holds the weights and their SHA-256 and nothing else, not even hidden."""
    good = {path.name: path.read_bytes() for path in (pristine / "home" / "weights").iterdir()}
    return {path.name: path.read_bytes() for path in (home / "weights").iterdir()} == good


def test_two_first_loads_at_once_are_both_right(pristine, tmp_path):
    pair = [load(pristine, tmp_path) for _ in range(2)]
    assert [(process.communicate()[0] != "", process.returncode) for process in pair] == [(True, 0)] * 2
    assert whole(pristine, tmp_path)


def test_first_loads_of_which_some_are_killed_leave_no_half_file(pristine, tmp_path):
    crowd = [load(pristine, tmp_path, killed=i % 2 == 0) for i in range(6)]
    codes = [(process.communicate(), process.returncode)[1] for process in crowd]
    assert codes == [-signal.SIGKILL, 0] * 3
    assert load(pristine, tmp_path).communicate()[0]  # a load that writes nothing clears nothing away
    left = [path for path in (tmp_path / "weights").iterdir() if path.name.startswith(".")]
    assert all(path.name.startswith(atomic.PREFIX) for path in left)
    atomic.write_text(tmp_path / "weights" / "other", "the next one to write does")
    (tmp_path / "weights" / "other").unlink()
    assert whole(pristine, tmp_path)


def test_one_that_is_killed_half_way_leaves_what_the_next_one_clears_away(pristine, tmp_path):
    killed = load(pristine, tmp_path, killed=True)
    assert killed.communicate()[0] == "half\n"
    assert [path.name.startswith(atomic.PREFIX) for path in (tmp_path / "weights").iterdir()] == [
        True
    ] * 2  # and its lock
    done = load(pristine, tmp_path)
    assert done.communicate()[0]
    assert done.returncode == 0
    assert whole(pristine, tmp_path)


def test_what_a_living_writer_prepares_is_left_alone(tmp_path):
    with atomic.temporary(tmp_path / "a") as new:
        new.write_text("a")
        atomic.write_text(tmp_path / "b", "b")
        assert new.read_text() == "a"
    assert os.listdir(tmp_path) == ["b"]


# Implementations that are broken: that is their verdict, 1, and never ours.

BROKEN = {
    "not_python": "this is not Python",
    "syntax_error": "def forward(:\n",
    "null_bytes": "x = 1\0",
    "exits_with_0": "import sys; sys.exit(0)",
    "exits_hard": "import os; os._exit(0)",
    "interrupts": "raise KeyboardInterrupt",
    "base_exception": "class E(BaseException): pass\nraise E",
    "recursion": "def f(): f()\nf()",
    "hostile_text": f"raise RuntimeError({HOSTILE_TEXT!r})",
    "markup": "raise RuntimeError('[/bold] [link=x] \\\\[')",
    "text_of_many_lines": "raise RuntimeError('a\\n' * 10000)",
    "no_text": "class E(Exception):\n    def __str__(self): 1 / 0\nraise E",
    "empty": "",
    "numbers_for_functions": "targets = load = forward = numpy = 1",
    "targets_null": "def targets(): return None\nload = forward = numpy = targets",
    "targets_text": "def targets(): return ['cpu']\nload = forward = numpy = targets",
    "targets_hostile": f"def targets(): return [({HOSTILE_TEXT!r}, 'float32')]\nload = forward = numpy = targets",
    "\u202ename \u20ac": "raise RuntimeError",
}


def test_broken_implementations_are_that_implementations_verdict(prepared, tmp_path):
    """All of them in one run, with nothing of theirs in the way of the others or of the files."""
    paths = [tmp_path / f"{name}.py" for name in BROKEN]
    for path, code in zip(paths, BROKEN.values(), strict=True):
        path.write_bytes(code.encode("utf-8", "surrogatepass"))
    out = tmp_path / "out"
    asked = [word for path in paths for word in ("--impl", str(path))]
    # a process of its own: what other tests have left in this one is no concern of it
    done = commands.parity("verify", *asked, "--out", out, "--timeout", 60)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Traceback" not in done.stdout
    frame = results.read(out)
    assert set(frame.verdict) == {"fail"}
    assert set(map(ascii, frame.implementation)) == set(map(ascii, BROKEN))
    assert len(list(ET.parse(out / "junit.xml").iter("failure"))) == len(frame)


# What a hostile implementation writes into the journal of its own worker.

FORGER = """
import json, sys
with open(json.load(open(sys.argv[1]))["journal"], "ab") as journal:
    journal.write({line!r})
def targets(): raise RuntimeError("late")
load = forward = numpy = targets
"""
HELLO = b'{"event": "hello", "versions": {}, "targets": '
FORGED = {
    "targets_numbers": HELLO + b"[[1, 2]]}\n",
    "targets_unhashable": HELLO + b'[[["cpu"], {}]]}\n',
    "no_json": b"garbage\n",
    "empty_line": b"\n",
    "text": b'"killed by whom?"\n',
    "number": b"1\n",
    "list": b"[]\n",
    "no_event": b"{}\n",
    "unknown_event": b'{"event": "applause"}\n',
    "event_list": b'{"event": []}\n',
    "not_utf8": b"\xff\xfe\n",
    "half_a_line": b'{"event": "hel',
    "hello_without_targets": b'{"event": "hello"}\n',
    "hello_with_numbers": b'{"event": "hello", "targets": [1], "versions": []}\n',
    "measured_nothing": b'{"event": "measured", "check": "logits", "measurement": []}\n',
    "end_before_begin": b'{"event": "end"}\n',
    "plan_of_numbers": b'{"event": "plan", "taps": 3, "offers": 4}\n',
    "nested_100000_deep": b"[" * 100_000 + b"\n",
    "nul_bytes": b"\0" * 100 + b"\n",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_garbled_journal_is_never_a_pass_nor_a_traceback(name, prepared, tmp_path, monkeypatch):
    """Whether it is that implementation's verdict (1) or no verdict at all (2)."""
    path = tmp_path / "forger.py"
    path.write_text(FORGER.format(line=FORGED[name]))
    monkeypatch.setattr(runner, "prepare", lambda *_: prepared)
    code, said, err = parity("verify", "--impl", str(path), "--timeout", "20")
    assert code in (1, 2)
    assert "PASS" not in said
    assert len(err.splitlines()) <= 1
    assert "Traceback" not in said + err


@given(st.floats(allow_nan=True), st.text(), JSON)
@settings(max_examples=30)
@example(1e19, "", None)
@example(8e292, "", None)
@example(1.7e308, "", None)
def test_whatever_a_measurement_holds_can_be_judged_and_written(tmp_path_factory, value, detail, odd):
    """Measurements come from the implementation's own process."""
    from gpt2_parity.contract.plan import CaseShape, Plan
    from gpt2_parity.verdict.judge import Judge

    plan = Plan(TINY, (CaseShape("seed", 1, 4, 1),), ("embed",))
    measured = [("logits", Measurement("seed", "logits", "noise_units", value, {detail: odd, "x": value})),
                ("local", Measurement("seed", "embed", "rounding_units", value, {"at": detail})),
                (detail, Measurement(detail, "logits", detail, value, {"error": detail}))]  # fmt: skip
    rows = Judge(detail, Target(detail, "float32"), "m").rows(plan, measured, {detail: detail})
    assert any(row.verdict == "fail" for row in rows)
    place = tmp_path_factory.getbasetemp() / "odd-results"
    files.write(Results(rows, {"model": detail, "odd": 1}), place)
    assert len(results.read(place)) == len(rows)
    ET.parse(place / "junit.xml")
