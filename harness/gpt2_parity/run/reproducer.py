"""The text of a Python file that shows one failure with NumPy and the implementation alone."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_parity.checks.search.trial import FORWARD, GENERATE, REFUSED, Step, Trial
from gpt2_parity.contract.interface import Target
from gpt2_parity.contract.plan import NO_CACHE
from gpt2_parity.implementation.discovery import Found

TEXT = '''"""{title}

python {name}.py [{what} of the implementation]
exits with 1 as long as it is wrong here, and with 0 once it is right. Needs only NumPy.
"""

import collections, importlib, importlib.util, json, pathlib, sys
import numpy as np

file = pathlib.Path(__file__).resolve()
{load}
raw = file.with_suffix(".safetensors").read_bytes()  # weights, tokens, truth and allowed error
start, types = 8 + int.from_bytes(raw[:8], "little"), {{"F32": "<f4", "F64": "<f8", "I32": "<i4"}}
header = json.loads(raw[8:start])
sizes = json.loads(header.pop("__metadata__")["hparams"])
data = {{}}
for name, entry in header.items():
    first, last = entry["data_offsets"]
    flat = np.frombuffer(raw[start + first : start + last], types[entry["dtype"]])
    order = getattr(impl, "ORDER", "C") if name.endswith("/w") else "C"
    data[name] = np.array(flat.reshape(entry["shape"]), order=order)
ours = ("tokens", "truth", "allowed")
params = {{name: x for name, x in data.items() if name.split("/")[0] not in ours}}
hparams = collections.namedtuple("HParams", sizes)(**sizes)
got = {{}}
{helper}
model = impl.load(params, hparams, device={device!r}, dtype={dtype!r})
{calls}

n_wrong = 0
for name in [name[6:] for name in data if name.startswith("truth/")]:
    truth, allowed = np.broadcast_arrays(data["truth/" + name], data["allowed/" + name])
    x = got[name] if isinstance(got[name], (float, np.ndarray)) else impl.numpy(got[name])
    x = np.array(x, np.float64)
    wrong = ~(abs(x - truth) <= allowed)  # NaN is wrong
    n_wrong += wrong.sum()
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        print(name, "is wrong at", wrong.sum(), "of", wrong.size, "elements, first at", [*map(int, at)])
        print("  got %.9g, expected %.9g, off by at most %.3g" % (x[at], truth[at], allowed[at]))
print("FAIL" if n_wrong else "right")
sys.exit(1 if n_wrong else 0)
'''
FAILS = "FAIL"  # what it prints
BY_PATH = """path = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else file.parent / {path!r}).resolve()
sys.path.append(str(path.parent))
spec = importlib.util.spec_from_file_location("implementation", path)
impl = sys.modules["implementation"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(impl)"""
BY_NAME = """sys.path.append(".")
impl = importlib.import_module(sys.argv[1] if len(sys.argv) > 1 else {module!r})"""
TAP = """

def tap(name, x):
    x = x if isinstance(x, np.ndarray) else impl.numpy(x)
    got[name] = np.array({cut})

"""
LAST = """

def last(logits, n):
    logits = logits[0] if isinstance(logits, tuple) else logits
    return (logits if isinstance(logits, np.ndarray) else impl.numpy(logits))[:, -n:]

"""
RAISES = """try:
    {call}
except (Exception, SystemExit) as error:
    print("FAIL: it raised", repr(error))
    sys.exit(1)"""
REFUSES = """

def must_refuse(*given):
    try:
        impl.numpy(impl.forward(*given)[0])
    except (Exception, SystemExit):
        return
    print("FAIL: an id that is no token was accepted")
    sys.exit(1)

"""


def text(
    name: str,
    title: str,
    found: Found,
    target: Target,
    trial: Trial,
    shown: Mapping[str, Any],
    folder: Path,
) -> str:
    """The file NAME.py for a folder. shown: what Search.shown_by said."""
    path = source(found)
    load = BY_NAME.format(module=found.module)
    if path is not None:
        load = BY_PATH.format(path=os.path.relpath(path, folder.resolve()))
    if found.attribute:
        load += f"\nimpl = impl.{found.attribute}"
    made = lines(trial, shown)
    n = trial.steps[shown["step"]].n
    cut = f"x[:, -{n}:]" if shown["cache"] == NO_CACHE else "x"
    helper = TAP.format(cut=cut) if shown["tapped"] else ""
    helper += LAST if shown["cache"] == NO_CACHE else ""
    helper += REFUSES if any(step.kind == REFUSED for step in trial.steps) else ""
    whole = TEXT.format(
        title=title,
        name=name,
        what="MODULE" if path is None else "PATH.py",
        load=load,
        helper=helper,
        device=target.device,
        dtype=target.dtype,
        calls="\n".join(made),
    )
    return whole.replace("\n\n\n\n", "\n\n\n")


def source(found: Found) -> Path | None:
    """The file to import an implementation from; None if it is part of a package, or in no file."""
    return found.source() if found.is_file or "." not in found.module else None


def lines(trial: Trial, shown: Mapping[str, Any]) -> list[str]:
    """A line for each call up to the one that fails. Caches are dropped after their last use."""
    steps, last = trial.steps, int(shown["step"])
    last_use = {step.past: i for i, step in enumerate(steps[: last + 1])}
    names: dict[int, str] = {}  # of the caches that are still needed, by step
    made = []
    for i, step in enumerate(steps[: last + 1]):
        past = names.get(step.past, "")
        if last_use.get(step.past) == i:
            names.pop(step.past, None)
        if step.kind == FORWARD and i in last_use:
            names[i] = next(each for each in CACHES if each not in names.values())
        made.append(line(i, step, past, names.get(i, "_"), shown))
    if not shown["compare"] and steps[last].kind != REFUSED:
        made[-1] = RAISES.format(call=made[-1].replace("\n", "\n    "))
    if steps[last].kind == FORWARD and shown["compare"] == "logits":
        made.append('got["logits"] = logits')
    return made


CACHES = ["cache", *(f"cache_{i}" for i in range(2, 1000))]


def line(i: int, step: Step, past: str, cache: str, shown: Mapping[str, Any]) -> str:
    """One call: past is the cache that it continues, cache what its own is called."""
    given = f'model, data["tokens/{i}"]'
    match step.kind:
        case kind if kind == GENERATE:
            return f'got["ids"] = impl.generate({given}, {step.n_new})'
        case kind if kind not in (FORWARD, REFUSED):
            return f'loss, grads = impl.loss_and_grads({given})\ngot |= {{"loss": float(loss), **grads}}'
    if shown["cache"] == NO_CACHE:  # it computes all tokens anew
        given += ", tap=tap" if shown["tapped"] and step.kind == FORWARD else ""
    elif shown["tapped"] and step.kind == FORWARD:
        given += f", {past or None}, tap"
    elif past:
        given += f", {past}"
    if step.kind == REFUSED:
        return f"must_refuse({given})"
    if shown["cache"] == NO_CACHE:
        return f"logits = last(impl.forward({given}), {step.n})"
    return f"logits, {cache} = impl.forward({given})"
