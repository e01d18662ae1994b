"""Hostile inputs: each has a name, a way to spoil a checkout, a command, and texts of the expected error.

Each must end with exit code 2 and one line on stderr, and leave every folder unchanged.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import huggingface_folder
import tf_bundle
from gpt2_parity.contract.architecture import HParams
from gpt2_parity.files import digest, safetensors_mmap
from gpt2_parity.model import checkpoint, tf_index
from gpt2_parity.reference import golden

VERIFY = ("verify", "--impl", "numpy", "--seed", "1")
CHECK = ("golden", "verify")
BUILD = ("golden", "build")
RECORD = "one_token.safetensors"  # the smallest


class World(NamedTuple):
    """A checkout's golden folder and a cache, to be spoiled."""

    root: Path

    @property
    def micro(self) -> Path:
        return self.root / "golden" / "micro"

    @property
    def records(self) -> Path:
        return self.root / "golden" / "records" / "micro"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def generated(self) -> Path:
        """A model in the form of shape:SIZE, in a folder of its own."""
        return self.root / "generated"

    @property
    def huggingface(self) -> Path:
        """A model with micro's vocabulary in the form of Hugging Face, in a folder of its own."""
        return self.root / "huggingface"


class Case(NamedTuple):
    """One hostile input."""

    spoil: Callable[[World], object]
    command: tuple[str, ...]  # {root} stands for the world's folder
    named: str  # what the error must contain


CASES: dict[str, Case] = {}


def add(name: str, spoil: Callable[[World], object], command: tuple[str, ...], named: str) -> None:
    assert name not in CASES, name
    CASES[name] = Case(spoil, command, named)


def put(path: Path, data: bytes | str) -> None:
    """Replace a file by a new one: the old one is a hard link to a file that all worlds share."""
    path.unlink(missing_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


# How a file can be spoilt without knowing what it is.


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(target: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        path.symlink_to(target)

    return spoil


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: put(path, change(path.read_bytes()))


# Each of these is found by another line of code: a file that is not there or no file, and one that
# cannot be read, would never end or leads elsewhere. Whatever else its content is, the SHA-256 is another.
SPOILT: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": _bytes(lambda data: b""),
    "middle_bit_flipped": _bytes(lambda data: flipped(data, len(data) // 2, 3)),
    "a_folder": _folder,
    "a_fifo": _fifo,
    "dangling_link": _link("../../nowhere"),
    "link_loop": lambda path: _link(path.name)(path),
    "link_to_another_file": _link("../../../elsewhere.bin"),
    "link_to_a_device": _link("/dev/zero"),
}

for file in checkpoint.FILES:  # each file is checked; the variants are tried on one of them
    for how in SPOILT if file == "model.ckpt.meta" else ("missing", "middle_bit_flipped"):
        add(f"{file}-{how}", lambda w, f=file, s=SPOILT[how]: s(w.micro / f), VERIFY, f"micro/{file}: ")
for file, ways in {
    "seed.safetensors": ("middle_bit_flipped",),
    "batch.safetensors": ("middle_bit_flipped",),
    "one_token.safetensors": ("missing", "middle_bit_flipped", "a_folder", "link_loop"),
    "manifest.json": ("missing", "empty", "middle_bit_flipped", "a_folder", "link_loop"),
}.items():
    for how in ways:
        add(f"{file}-{how}", lambda w, f=file, s=SPOILT[how]: s(w.records / f), CHECK, f"{file}: ")
for how in ("missing", "middle_bit_flipped", "a_folder"):
    add(f"seal-{how}", lambda w, s=SPOILT[how]: s(w.records / golden.SEAL), VERIFY, "manifest.json: ")


# hparams.json, read before there is any SHA-256 to compare with.

ABSURD = [
    0,
    -1,
    -(2**63),
    2**24,
    2**31,
    2**64,
    10**400,
    1.0,
    128.5,
    1e308,
    True,
    False,
    None,
    "128",
    "",
    [128],
    {},
]
for entry in HParams._fields:
    for value in ABSURD if entry == "n_layer" else (0, 2**24, None):
        add(
            f"hparams-{entry}={str(value)[:20]!r}",
            lambda w, e=entry, v=value: spoil_json(
                w.micro / "hparams.json", lambda raw: raw.update({e: v})
            ),
            BUILD,
            f"hparams.json: {entry} is ",
        )
    add(
        f"hparams-without-{entry}",
        lambda w, e=entry: spoil_json(w.micro / "hparams.json", lambda raw: raw.pop(e)),
        BUILD,
        "hparams.json: needs n_vocab",
    )
    add(
        f"hparams-{entry}-twice",
        lambda w, e=entry: put(
            w.micro / "hparams.json",
            (w.micro / "hparams.json").read_text().replace("{", f'{{"{e}": 7, ', 1),
        ),
        BUILD,
        f"'{entry}' comes twice",
    )
for name, changes, named in [
    ("n_head-3", {"n_head": 3}, "hparams.json: n_embd 128 is not divisible by n_head 3"),
    ("n_head-above-n_embd", {"n_head": 256}, "not divisible"),
    ("n_layer-4095", {"n_layer": 4095}, "model.ckpt.data-00000-of-00001: 3816448 bytes"),
    ("n_layer-3", {"n_layer": 3}, "model.ckpt.data-00000-of-00001: 3816448 bytes"),
    ("n_ctx-255", {"n_ctx": 255}, "model.ckpt.data-00000-of-00001: 3816448 bytes"),
    ("n_vocab-8388607", {"n_vocab": 2**23 - 1}, "model.ckpt.data-00000-of-00001: 3816448 bytes"),
    ("n_embd-16777212", {"n_embd": 2**24 - 4}, "model.ckpt.data-00000-of-00001: 3816448 bytes"),
    ("n_vocab-and-n_ctx-exchanged", {"n_vocab": 256, "n_ctx": 1000}, "variable model/w"),
    ("one-token-less-one-place-more", {"n_vocab": 999, "n_ctx": 257}, "variable model/w"),
]:
    add(
        f"hparams-{name}",
        lambda w, c=changes: spoil_json(w.micro / "hparams.json", lambda raw: raw.update(c)),
        BUILD,
        named,
    )
GOOD = '{"n_vocab": 1000, "n_ctx": 256, "n_embd": 128, "n_head": 4, "n_layer": 4}'
NO_JSON: dict[str, bytes] = {
    "spaces": b"   ",
    "null": b"null",
    "number": b"1",
    "list": b"[1000, 256, 128, 4, 4]",
    "text": b'"n_vocab"',
    "open": GOOD[:-1].encode(),
    "two": (GOOD + GOOD).encode(),
    "comment": b"// sizes\n" + GOOD.encode(),
    "single_quotes": GOOD.replace('"', "'").encode(),
    "trailing_comma": GOOD.replace("}", ",}").encode(),
    "NaN": GOOD.replace("1000", "NaN").encode(),
    "Infinity": GOOD.replace("1000", "-Infinity").encode(),
    "number_of_5000_digits": GOOD.replace("1000", "9" * 5000).encode(),
    "nested_100000_deep": b"[" * 100_000,
    "objects_100000_deep": b'{"n_vocab":' * 100_000,
    "utf16": GOOD.encode("utf-16"),
    "utf32": GOOD.encode("utf-32"),
    "byte_order_mark": b"\xef\xbb\xbf" + GOOD.encode(),
    "latin1": GOOD.replace("n_vocab", "n_vöcab").encode("latin-1"),
    "nul_bytes": b"\0" * 64,
    "nested_in_another": ('{"hparams": ' + GOOD + "}").encode(),
    "pickle": b"\x80\x04\x95\x0e\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    "yaml": b"n_vocab: 1000\nn_ctx: 256\n",
    "html": b"<!DOCTYPE html><title>404</title>",
    "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 74\n",
}
for name, data in NO_JSON.items():
    add(
        f"hparams-{name}",
        lambda w, d=data: put(w.micro / "hparams.json", d),
        BUILD,
        "micro/hparams.json: needs n_vocab",
    )
for name in ("open", "nested_100000_deep", "utf16"):  # all are read by the same strict_json
    data = NO_JSON[name]
    add(f"encoder-{name}", lambda w, d=data: put(w.micro / "encoder.json", d), BUILD, "encoder.json: ")
    add(
        f"manifest-{name}",
        lambda w, d=data: (put(w.records / "manifest.json", d), seal(w)),
        VERIFY,
        "manifest.json: not",
    )


def spoil_json(path: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    put(path, json.dumps(document))


def seal(world: World) -> None:
    put(world.records / golden.SEAL, golden.seal(world.records / "manifest.json"))


# The file called checkpoint, which says which files to read; names in it are no paths for us.

for name, text in {
    "another_prefix": 'model_checkpoint_path: "model.ckpt-1000"\n',
    "parent": 'model_checkpoint_path: "../micro/model.ckpt"\n',
    "absolute": 'model_checkpoint_path: "/etc/passwd"\n',
    "no_name": 'model_checkpoint_path: ""\n',
    "only_all": 'all_model_checkpoint_paths: "model.ckpt"\n',
    "binary": "\0\1\2",
}.items():
    add(
        f"checkpoint-{name}",
        lambda w, t=text: put(w.micro / "checkpoint", t),
        BUILD,
        "micro/checkpoint: does not say",
    )


# The weights' file, without a manifest: its size is known from hparams.json.

for name, size in {
    "4_bytes_less": -4,
    "4_bytes_more": 4,
    "64_MiB_of_holes": 2**26,
}.items():

    def _resize(world: World, by: int = size) -> None:
        path = world.micro / checkpoint.DATA
        put(path, path.read_bytes())
        os.truncate(path, path.stat().st_size + by)

    add(f"data-{name}", _resize, BUILD, "model.ckpt.data-00000-of-00001: ")


# The index, with right checksums, and without a manifest.


def indexed(
    tensors: Callable[[dict[str, tf_index.Tensor]], object] = lambda _: None,
    pairs: Callable[[tf_bundle.Pairs], object] = lambda _: None,
    kind: int = 0,
) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        said = tf_index.read(world.micro / checkpoint.INDEX)
        tensors(said)
        found = tf_bundle.pairs(said)
        pairs(found)
        put(world.micro / checkpoint.INDEX, tf_bundle.index(found, kind))

    return spoil


for name in ("two_shards", "slices", "giant_shape"):  # test_tf_variables.py has all of them
    change, named = (tf_bundle.FORMS | tf_bundle.LIES)[name]
    add(f"index-{name}", indexed(pairs=change), BUILD, named)
for name, (change, named) in tf_bundle.PLACES.items():
    add(f"index-{name}", indexed(tensors=change), BUILD, named)
add("index-compressed", indexed(kind=1), BUILD, "model.ckpt.index: the block at byte 0 is compressed")
add("index-garbled", lambda w: put(w.micro / checkpoint.INDEX, b"x" * 99), BUILD, "its footer is not")
add(
    "data-in-shards",
    lambda w: (w.micro / checkpoint.DATA).rename(w.micro / "model.ckpt.data-00000-of-00002"),
    BUILD,
    "model.ckpt.data-00000-of-00002: the checkpoint is split over several data files (shards)",
)


# The vocabulary.


def vocabulary(change: Callable[[dict[str, Any]], object]) -> Callable[[World], None]:
    return lambda world: spoil_json(world.micro / "encoder.json", change)


def merges(change: Callable[[list[str]], list[str]]) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        path = world.micro / "vocab.bpe"
        put(path, "\n".join(change(path.read_text(encoding="utf-8").split("\n"))))

    return spoil


END = "<|endoftext|>"
for name, change, named in [
    ("one_less", lambda v: v.pop("he"), "encoder.json: "),
    ("one_more", lambda v: v.update(zzzz=1000), "encoder.json: "),
    ("id_used_twice", lambda v: v.update(he=v["in"]), "encoder.json: "),
    ("two_exchanged", lambda v: v.update(he=v["in"], **{"in": v["he"]}), "encoder.json: "),
    ("hole_in_the_ids", lambda v: v.update({END: 1001}), "<|endoftext|> has id 1001"),
    ("end_is_first", lambda v: v.update({END: 0}), "<|endoftext|> has id 0"),
    ("end_is_missing", lambda v: (v.pop(END), v.update({"<|startoftext|>": 999})), "<|endoftext|> has id None"),
    ("negative_id", lambda v: v.update(he=-1), "encoder.json: "),
    ("id_is_text", lambda v: v.update(he="3"), "the id of 'he' is not an integer"),
    ("id_is_float", lambda v: v.update(he=float(v["he"])), "the id of 'he' is not an integer"),
    ("id_is_true", lambda v: v.update({next(k for k, i in v.items() if i == 1): True}), "is not an integer"),
    ("id_is_null", lambda v: v.update(he=None), "the id of 'he' is not an integer"),
    ("id_is_a_list", lambda v: v.update(he=[1]), "the id of 'he' is not an integer"),
    ("giant_id", lambda v: v.update(he=10**300), "encoder.json: "),
    ("no_such_byte", lambda v: v.update({"\U0001f600": v.pop("he")}), "encoder.json: "),
    ("surrogate", lambda v: v.update({"\udc80": v.pop("he")}), "encoder.json: "),
    ("empty_name", lambda v: v.update({"": v.pop("he")}), "encoder.json: "),
    ("path_for_a_name", lambda v: v.update({"../../he": v.pop("he")}), "encoder.json: "),
]:  # fmt: skip
    add(f"encoder-{name}", vocabulary(change), BUILD, named)
for name, change in {
    "one_merge_less": lambda lines: lines[:-2] + [""],
    "one_merge_twice": lambda lines: [*lines[:-1], lines[5], ""],
    "two_merges_exchanged": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "three_parts": lambda lines: [lines[0], lines[1] + " x", *lines[2:]],
    "one_part": lambda lines: [lines[0], "x", *lines[2:]],
    "unknown_part": lambda lines: [lines[0], "\u20ac x", *lines[2:]],
    "no_version": lambda lines: lines[1:],
    "only_version": lambda lines: lines[:1],
    "empty_line": lambda lines: [*lines[:9], "", *lines[9:]],
    "carriage_returns": lambda lines: [f"{line}\r x" for line in lines],
}.items():
    add(f"merges-{name}", merges(change), BUILD, "vocab.bpe and ")
add(
    "merges-not_utf8",
    lambda w: put(w.micro / "vocab.bpe", b"\xff\xfe\n\x80 \x81\n"),
    BUILD,
    "vocab.bpe and ",
)


# The manifest, forged and sealed anew.

FORM = "manifest.json: not a golden manifest of format 1"
FILES = f"{FORM} (it does not give the SHA-256 of every checkpoint file)"


def forged(change: Callable[[dict[str, Any]], object]) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        spoil_json(world.records / "manifest.json", change)
        seal(world)

    return spoil


def _rename(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda m: m["cases"].update({name: m["cases"].pop("seed")})


for name in ["../../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "seed\n", "seed\0", "SEED", "s\u00e9ed", "x" * 300,
             "\ud800", "\udc80", "\x1b[2J", "[bold]", "fresh", "CON ", "seed.safetensors"]:  # fmt: skip
    add(
        f"manifest-case-{ascii(name)[:30]}",
        forged(_rename(name)),
        VERIFY,
        FORM + " (Expected `str` matching",
    )
for name, value in {"null": None, "list": [], "text": "x", "number": 1, "empty": {}}.items():
    add(
        f"manifest-entry-{name}",
        forged(lambda m, v=value: m["cases"].update(seed=v)),
        CHECK,
        FORM,
    )
    add(f"manifest-cases-{name}", forged(lambda m, v=value: m.update(cases=v)), VERIFY, FORM)
    add(f"manifest-shas-{name}", forged(lambda m, v=value: m.update(checkpoint_sha256=v)), VERIFY, FORM)
for key in ("agreement_noise_units", "agreement_worst_at", "agreement_logits_max_abs", "sha256"):
    add(
        f"manifest-without-{key}",
        forged(lambda m, k=key: m["cases"]["seed"].pop(k)),
        CHECK,
        FORM,
    )
    spoil = forged(lambda m, k=key: m["cases"]["seed"].update({k: None}))
    add(f"manifest-null-{key}", spoil, CHECK, FORM)
for value in (0, 2, 99, -1, "1", 1.0, True, None, [1]):
    add(
        f"manifest-format-{value!r}",
        forged(lambda m, v=value: m.update(format=v)),
        VERIFY,
        "of format 1",
    )
add("manifest-without-model", forged(lambda m: m.pop("model")), CHECK, FORM)
add("manifest-model-null", forged(lambda m: m.update(model=None)), CHECK, FORM)
add(
    "manifest-shas-as-list",
    forged(lambda m: m.update(checkpoint_sha256=list(checkpoint.FILES))),
    VERIFY,
    FORM,
)
add("manifest-one-sha-less", forged(lambda m: m["checkpoint_sha256"].pop("vocab.bpe")), VERIFY, FILES)
add(
    "manifest-sha-of-outside",
    forged(lambda m: m["checkpoint_sha256"].update({"../x": "0"})),
    VERIFY,
    FILES,
)
add("manifest-sha-null", forged(lambda m: m["checkpoint_sha256"].update(checkpoint=None)), VERIFY, FORM)
add(
    "manifest-ghost",
    forged(lambda m: m["cases"].update(ghost=m["cases"]["seed"])),
    VERIFY,
    "ghost.safetensors: ",
)


# A record, forged so that all SHA-256 agree.


def resealed(data: bytes, world: World) -> None:
    put(world.records / RECORD, data)
    sha = digest.sha256(world.records / RECORD)
    forged(lambda m: m["cases"]["one_token"].update(sha256=sha))(world)


def arrays(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        path = world.records / RECORD
        found = {name: np.array(a) for name, a in safetensors_mmap.read(path).items()}
        change(found)
        safetensors_mmap.write(path, found)
        resealed(path.read_bytes(), world)

    return spoil


def _set(name: str, value: float) -> Callable[[dict[str, np.ndarray]], object]:
    return lambda a: a[name].reshape(-1).__setitem__(0, value)


for name in ("tokens", "positions", "logits", "logits_tensorflow", "greedy", "margins", "taps/h3/mlp/gelu",
             "noise/float32/logits", "noise/bfloat16/taps"):  # fmt: skip
    slug = name.replace("/", ".")
    add(f"record-without-{slug}", arrays(lambda a, n=name: a.pop(n)), CHECK, f"{RECORD}: ")
    bad = -1 if name in ("tokens", "positions", "greedy") else np.nan
    add(f"record-{bad}-in-{slug}", arrays(_set(name, bad)), VERIFY, f"{RECORD}: {name} has values")
for name in ("tokens", "margins"):
    spoil = arrays(lambda a, n=name: a.update({n: a[n][..., None]}))
    add(f"record-wrong-shape-{name}", spoil, VERIFY, f"{RECORD}: ")
    spoil = arrays(lambda a, n=name: a.update({n: a[n].astype(np.int64)}))
    add(f"record-wrong-dtype-{name}", spoil, VERIFY, f"{RECORD}: {name} is int64")
add("record-token-1000", arrays(_set("tokens", 1000)), VERIFY, "tokens has values")
add("record-greedy-1000", arrays(_set("greedy", 1000)), VERIFY, "greedy has values")
add("record-position-1", arrays(_set("positions", 1)), VERIFY, "positions has values")
add("record-infinite-logit", arrays(_set("logits", np.inf)), VERIFY, "logits has values")
add("record-no-noise", arrays(lambda a: a["noise/float32/logits"].fill(0)), VERIFY, "logits has values")
add("record-one-array-more", arrays(lambda a: a.update(extra=np.ones(1))), VERIFY, "unknown extra")
add("record-of-outside", arrays(lambda a: a.update({"../../x": np.ones(1)})), VERIFY, "unknown ../../x")
add("record-no-tokens", arrays(lambda a: a.update(tokens=a["tokens"][:, :0])), VERIFY, f"{RECORD}: ")
add("record-margin-forged", arrays(_set("margins", 9.0)), CHECK, "golden one_token: margins is")


# Headers of safetensors files that lie.


def blob(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    start = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:start]), data[start:]


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        found, rest = parts(data)
        change(found)
        return blob(json.dumps(found).encode(), rest)

    return spoil


def _entry(**changes: Any) -> Callable[[bytes], bytes]:
    """The last array in the file is described otherwise."""
    return header(lambda h: h[max(h, key=lambda n: h[n]["data_offsets"][1])].update(changes))


def _overlap(found: dict[str, Any]) -> None:
    """Two arrays of the same size lie at the same place."""
    sizes: dict[int, str] = {}
    for name, entry in found.items():
        begin, end = entry["data_offsets"]
        other = sizes.setdefault(end - begin, name)
        if other != name:
            entry["data_offsets"] = found[other]["data_offsets"]
            return


LIES: dict[str, Callable[[bytes], bytes]] = {
    "length_0": lambda data: bytes(8) + data[8:],
    "length_1": lambda data: b"\1" + bytes(7) + data[8:],
    "length_beyond_the_file": lambda data: (len(data)).to_bytes(8, "little") + data[8:],
    "length_2_to_63": lambda data: bytes(7) + b"\x80" + data[8:],
    "length_2_to_64_less_1": lambda data: b"\xff" * 8 + data[8:],
    "length_one_less": lambda data: (int.from_bytes(data[:8], "little") - 1).to_bytes(8, "little") + data[8:],
    "only_the_length": lambda data: data[:8],
    "seven_bytes": lambda data: data[:7],
    "nothing": lambda data: b"",
    "no_json": lambda data: blob(b"x" * 64, parts(data)[1]),
    "a_list": lambda data: blob(b"[]", parts(data)[1]),
    "null": lambda data: blob(b"null", parts(data)[1]),
    "no_arrays": lambda data: blob(b"{}", parts(data)[1]),
    "nested_100000_deep": lambda data: blob(b'{"x":' + b"[" * 100_000, parts(data)[1]),
    "not_utf8": lambda data: blob(b'{"\xff": 1}', parts(data)[1]),
    "name_twice": lambda data: blob(
        data[8 : 8 + int.from_bytes(data[:8], "little")].strip()[:-1]
        + b", "
        + json.dumps(parts(data)[0]).encode()[1:],
        parts(data)[1],
    ),
    "bytes_after_the_end": lambda data: data + b"evil",
    "bytes_before_the_first": header(
        lambda h: [e.update(data_offsets=[e["data_offsets"][0] + 8, e["data_offsets"][1] + 8]) for e in h.values()]
    ),
    "overlapping": header(_overlap),
    "entry_null": header(lambda h: h.update({min(h): None})),
    "entry_list": header(lambda h: h.update({min(h): []})),
    "entry_empty": header(lambda h: h.update({min(h): {}})),
    "offsets_negative": _entry(data_offsets=[-8, 0]),
    "offsets_reversed": _entry(data_offsets=[8, 0]),
    "offsets_beyond_the_file": _entry(data_offsets=[0, 2**62]),
    "offsets_giant": _entry(data_offsets=[10**300, 10**301]),
    "offsets_float": _entry(data_offsets=[0.0, 8.0]),
    "offsets_boolean": _entry(data_offsets=[False, True]),
    "offsets_text": _entry(data_offsets=["0", "8"]),
    "offsets_one": _entry(data_offsets=[0]),
    "offsets_three": _entry(data_offsets=[0, 4, 8]),
    "offsets_null": _entry(data_offsets=None),
    "dtype_unknown": _entry(dtype="F8_E5M2"),
    "dtype_wider": _entry(dtype="I64", shape=[7]),
    "dtype_null": _entry(dtype=None),
    "dtype_list": _entry(dtype=["F32"]),
    "dtype_object": _entry(dtype="O"),
    "shape_inferred": _entry(shape=[-1]),
    "shape_negative": _entry(shape=[-1, -1]),
    "shape_giant": _entry(shape=[2**62, 2**62, 2**62]),
    "shape_overflowing_to_0": _entry(shape=[2**32, 2**32]),
    "shape_65_axes": _entry(shape=[1] * 65),
    "shape_float": _entry(shape=[1.0]),
    "shape_text": _entry(shape="1"),
    "shape_null": _entry(shape=None),
    "shape_nested": _entry(shape=[[1]]),
}  # fmt: skip
for name, lie in LIES.items():
    add(
        f"weights-header-{name}",
        lambda w, lie=lie: put(w.generated / "weights.safetensors", lie((w.generated / "weights.safetensors").read_bytes())),
        (*BUILD, "--model", "{root}/generated"),
        "generated/weights.safetensors: ",
    )  # fmt: skip
add(  # records are read by the same reader
    "record-header-name_twice",
    lambda w: resealed(LIES["name_twice"]((w.records / RECORD).read_bytes()), w),
    VERIFY,
    f"{RECORD}: ",
)


# Weights that are no numbers, and the wrong ones, where nothing but check stands before the oracle.


def weights(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        path = world.generated / "weights.safetensors"
        found = {name: np.array(a) for name, a in safetensors_mmap.read(path).items()}
        change(found)
        safetensors_mmap.write(path, found)

    return spoil


for name in ("wte", "h0/ln_1/g"):
    for value in (np.nan, np.inf, -np.inf):
        add(
            f"weights-{value}-in-{name.replace('/', '.')}",
            weights(_set(name, value)),
            (*BUILD, "--model", "{root}/generated"),
            f"weights.safetensors: variable model/{name} has values",
        )
    slug, model = name.replace("/", "."), (*BUILD, "--model", "{root}/generated")
    add(
        f"weights-without-{slug}", weights(lambda p, n=name: p.pop(n)), model, f"model/{name} is missing"
    )
    spoil = weights(lambda p, n=name: p.update({n: p[n].astype(np.float64)}))
    add(f"weights-float64-{slug}", spoil, model, f"model/{name} is float64")
    spoil = weights(lambda p, n=name: p.update({n: p[n][:-1]}))
    add(f"weights-short-{slug}", spoil, model, f"model/{name} has shape")
for name in ("extra", "../../evil", "model/wte", "h1/ln_1/g", "H0/ln_1/g", "w\u0442e", ""):
    spoil = weights(lambda p, n=name: p.update({n: np.ones(1, np.float32)}))
    add(f"weights-unknown-{name!a}", spoil, model, f"unknown variable model/{name}")


# A folder of Hugging Face, without a manifest; test_huggingface.py has its refusals one by one.

HUGGING_FACE = (*BUILD, "--model", "{root}/huggingface")
EMPTY = ("missing", "empty", "a_folder", "a_fifo", "dangling_link", "link_loop", "link_to_a_device")
for file, ways in {
    "config.json": EMPTY,
    "model.safetensors": (*EMPTY, "link_to_another_file"),
    "vocab.json": ("missing",),
    "merges.txt": ("missing",),
}.items():
    for how in ways:
        add(
            f"hf-{file}-{how}",
            lambda w, f=file, s=SPOILT[how]: s(w.huggingface / f),
            HUGGING_FACE,
            f"huggingface/{file}: ",
        )
for name in (
    "null",
    "list",
    "open",
    "NaN",
    "number_of_5000_digits",
    "nested_100000_deep",
    "utf16",
    "html",
):
    add(
        f"hf-config-{name}",
        lambda w, d=NO_JSON[name]: put(w.huggingface / "config.json", d),
        HUGGING_FACE,
        "huggingface/config.json: not a configuration as JSON",
    )
for name, changes, named in [
    ("another_model", {"model_type": "llama"}, "config.json: model_type is 'llama'"),
    ("unknown", {"evil\n\x1b[2J" + "x" * 5000: 1}, "is unknown"),
    ("giant_n_embd", {"n_embd": 10**300}, "config.json: n_embd is "),
    ("text_for_n_embd", {"n_embd": "8", "n_inner": 32}, "config.json: n_inner is "),
    ("n_layer-4095", {"n_layer": 4095}, "model.safetensors: tensor h.1.ln_1.weight is missing"),
    ("n_head-3", {"n_head": 3}, "config.json: n_embd 8 is not divisible by n_head 3"),
]:
    add(
        f"hf-config-{name}",
        lambda w, c=changes: spoil_json(w.huggingface / "config.json", lambda raw: raw.update(c)),
        HUGGING_FACE,
        named,
    )
for name in ("length_beyond_the_file", "length_2_to_64_less_1", "nested_100000_deep", "not_utf8", "name_twice",
             "bytes_after_the_end", "overlapping", "entry_null", "offsets_giant", "dtype_unknown", "shape_giant"):  # fmt: skip
    add(
        f"hf-header-{name}",
        lambda w, lie=LIES[name]: put(
            w.huggingface / "model.safetensors", lie((w.huggingface / "model.safetensors").read_bytes())
        ),
        HUGGING_FACE,
        "huggingface/model.safetensors: not a readable safetensors file",
    )


def _bomb(world: World) -> None:
    """A file of holes whose header would need more memory than a header may."""
    path = world.huggingface / "model.safetensors"
    put(path, (safetensors_mmap.LONGEST_HEADER + 64).to_bytes(8, "little"))
    os.truncate(path, safetensors_mmap.LONGEST_HEADER + 128)


def _pickled(world: World) -> None:
    """Only pickled weights; unpickling these calls a function."""
    (world.huggingface / "model.safetensors").unlink()
    put(world.huggingface / "pytorch_model.bin", b"cos\nabort\n(tR.")


def _shards(world: World) -> None:
    (world.huggingface / "model.safetensors").unlink()
    put(world.huggingface / "model.safetensors.index.json", "{}")


def tensors(**changes: Any) -> Callable[[World], None]:
    return lambda world: huggingface_folder.alter(world.huggingface, **changes)


for name, spoil, named in [
    ("header_bomb", _bomb, "its header is longer than 100000000 bytes"),
    ("pickle", _pickled, "pytorch_model.bin: a pickle"),
    ("shards", _shards, "model.safetensors.index.json: the weights are split"),
    ("nan", tensors(**{"wte.weight": lambda a: a * np.nan}), "tensor wte.weight has values"),
    (
        "transposed",
        tensors(**{"h.0.mlp.c_fc.weight": lambda a: a.T.copy()}),
        "c_fc.weight has shape (32, 8)",
    ),
    ("unknown", tensors(**{"../../evil\n": np.ones(1, np.float32)}), "is not one of GPT-2's"),
    (
        "layer_of_5000_digits",
        tensors(**{f"h.{'9' * 5000}.attn.bias": np.ones(1, np.float32)}),
        "is not one of",
    ),
    ("untied", tensors(**{"lm_head.weight": np.ones((1000, 8), np.float32)}), "lm_head.weight differs"),
]:
    add(f"hf-{name}", spoil, HUGGING_FACE, named)


# Bad command lines.


def nothing(world: World) -> None:
    """The files are as they should be."""


def _file(name: str, data: bytes = b"x") -> Callable[[World], object]:
    return lambda world: put(world.root / name, data)


def _loop(name: str) -> Callable[[World], object]:
    return lambda world: (world.root / name).symlink_to(name)


for name, spoil, command, named in [
    *[(f"{option}={value}", nothing, (*VERIFY, option, value), f"{option[2:]} ")
      for option in ("--timeout", "--memory") for value in ("nan", "-1", "0", "-inf", "inf", "-1e308")],
    *[(f"impl-{i}", nothing, ("verify", "--impl", value), "implementation ")
      for i, value in enumerate(("", ".", "..", "...", "a..b", ".numpy", "numpy.", "no/such", "../x", "/", "x.py", "\0",
                                 "/dev/null", "/dev/null/x.py", "~/x.py", "x" * 5000, "x" * 5000 + ".py",
                                 "\u202etorch", "\ud83d\ude00", "\udc80", "\udc80.py", "a\nb", "\x1b[2J", "[bold]",
                                 "__main__.x", "json.nonesuch", "-", "numpy,torch", "NUMPY", "*"))],
    ("impl-folder.py", lambda w: (w.root / "folder.py").mkdir(), ("verify", "--impl", "{root}/folder.py"), "folder.py"),
    ("impl-loop.py", _loop("loop.py"), ("verify", "--impl", "{root}/loop.py"), "loop.py"),
    ("impl-folder", nothing, ("verify", "--impl", "{root}/golden"), "golden"),
    ("impl-no-extension", _file("impl"), ("verify", "--impl", "{root}/impl"), "impl"),
    *[(f"model-{i}", nothing, ("verify", "--impl", "numpy", "--model", value), "model ")
      for i, value in enumerate(("", "no", "124m", "124M ", "124M", "../124M", "shape:", "shape:9M", "shape:../124M",
                                 "shape:shape:124M", "~nobody-here/x", "x" * 5000, "\0", "\udc80", "a\nb", "\x1b[2J",
                                 "/dev/null", "/proc/self/mem", "https://x/y"))],
    ("model-empty-folder", lambda w: (w.root / "e").mkdir(), (*VERIFY, "--model", "{root}/e"), "e/checkpoint: missing"),
    ("model-loop", _loop("loop"), (*VERIFY, "--model", "{root}/loop"), "loop"),
    ("model-is-a-file", _file("f"), (*VERIFY, "--model", "{root}/f"), "/f': no such folder"),
    ("model-without-records", nothing, (*VERIFY, "--model", "{root}/generated"), "manifest.json: no golden record"),
    ("model-newline", lambda w: (w.root / "a\nb").mkdir(), (*VERIFY, "--model", "{root}/a\nb"), "a\\nb/checkpoint"),
    ("model-surrogate", lambda w: (w.root / "\udc80").mkdir(), (*VERIFY, "--model", "{root}/\udc80"), "\\udc80/check"),
    *[(f"target-{i}", nothing, (*VERIFY, "--target", value), "target ")
      for i, value in enumerate(("", "-", "cpu", "cpu-", "-float32", "cpu_float32", "\udc80", "[bold]"))],
    ("out-is-a-file", _file("out"), (*VERIFY, "--out", "{root}/out"), "/out: cannot be"),
    ("out-under-a-file", _file("out"), (*VERIFY, "--out", "{root}/out/deep"), "/out/deep: cannot be"),
    ("out-loop", _loop("out"), (*VERIFY, "--out", "{root}/out"), "/out: cannot be"),
    ("out-dangling", lambda w: (w.root / "out").symlink_to("no"), (*VERIFY, "--out", "{root}/out"), "/out: cannot be"),
    ("out-in-proc", nothing, (*VERIFY, "--out", "/proc/self/out"), "/proc/self/out: cannot be"),
    ("out-in-sys", nothing, (*VERIFY, "--out", "/sys/kernel/out"), "/sys/kernel/out: cannot be"),
    ("out-too-long", nothing, (*VERIFY, "--out", "{root}/" + "x" * 300), "cannot be"),
    ("out-holds-a-folder", lambda w: (w.root / "o" / "results.json").mkdir(parents=True),
     (*VERIFY, "--out", "{root}/o"), "o/results.json: cannot be removed"),
    ("out-holds-a-folder-junit", lambda w: (w.root / "o" / "junit.xml").mkdir(parents=True),
     (*VERIFY, "--out", "{root}/o"), "o/junit.xml: cannot be removed"),
]:  # fmt: skip
    add(name, spoil, command, named)


# Said wrongly, so that the command line itself refuses: several lines, with the usage.

USAGE = [
    ("verify", "--seed", "-1"),
    ("verify", "--seed", "1.5"),
    ("verify", "--seed", "x"),
    ("verify", "--seed", ""),
    ("verify", "--timeout", "soon"),
    ("verify", "--timeout", ""),
    ("verify", "--memory", "16GB"),
    ("verify", "--impl"),
    ("verify", "--out"),
    ("verify", "--nonesuch"),
    ("verify", "stray"),
    ("golden", "verify", "stray"),
    ("golden", "destroy"),
    ("golden",),
    ("nonesuch",),
    ("\udc80",),
    ("--",),
]
