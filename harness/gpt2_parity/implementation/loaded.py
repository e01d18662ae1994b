"""An implementation under test: loaded on one target, and called only through this module.

What it returns is brought to the host, copied immediately (so a buffer that it reuses cannot change
evidence) and checked for the contract's shapes. It receives its own copies: if it writes into weights or
tokens, those that it is judged by do not change.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2_parity.contract.architecture import HParams, tap_names, tap_width
from gpt2_parity.contract.capability import Capability
from gpt2_parity.contract.interface import ContractBroken, Target
from gpt2_parity.contract.plan import CHECKPOINT, KEPT, NO_CACHE, QUANTIZED, Plan
from gpt2_parity.files import safetensors_mmap
from gpt2_parity.implementation import own_weights
from gpt2_parity.model import weight_layout
from gpt2_parity.reference import truth
from gpt2_parity.reference.distance import max_abs
from gpt2_parity.reference.records import FRESH, Case, Record, shape_of


def chunk_cuts(n: int) -> list[int]:
    """Where n tokens are cut into chunks for decode: uneven, with one token first and one last."""
    return sorted({1, n // 3, n // 2 + 1, n - 1} - {0, n}) if n > 1 else []


def describe(value: Any) -> str:
    """A value in an error message: float32 array (1, 9, 512), or the name of its type."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {value.shape}"
    size = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
    return f"{type(value).__name__}{size}"


class Tapped(NamedTuple):
    """The results of one forward pass, on the host."""

    logits: np.ndarray  # [batch, n, n_vocab]
    taps: dict[str, np.ndarray]  # by name, each [batch, n, width]
    present: Any  # the cache, opaque


class Loaded:
    """One implementation with its model.

    params are the weights that it is judged by, and records what is right with them: the checkpoint's,
    unless it offers others. checkpoint and golden are always the checkpoint's.
    """

    def __init__(
        self,
        impl: Any,
        model: Any,
        target: Target,
        params: safetensors_mmap.MappedArrays,
        hparams: HParams,
        records: Sequence[Record],
        decode: Callable[[Sequence[int]], str] = str,
        folder: Path | None = None,
        load_seconds: list[float] | None = None,
    ):
        """folder: for truths about the fresh case, which are shared by all workers of a run.

        load_seconds: of each load() so far, shared with the models that are loaded beside it.
        """
        self.impl, self.model, self.target = impl, model, target
        self.params, self.hparams = params, hparams
        self.records, self.text = records, decode
        self.checkpoint, self.golden = params, records
        self.folder = folder
        self.load_seconds = [] if load_seconds is None else load_seconds
        self.others: dict[str, tuple[Loaded, Record]] = {}  # auxiliary models that several checks use
        self._logits: dict[str, np.ndarray] = {}
        self._latest: tuple[str, Tapped] | None = None

    @classmethod
    def load(
        cls, impl: Any, target: Target, weights: Path, hparams: HParams, *rest: Any, **named: Any
    ) -> "Loaded":
        """Load the model from a mapping of its own, which is freed if the implementation copies it."""
        given = weight_layout.params_for(impl, weights)
        started = time.perf_counter()
        model = impl.load(given, hparams, **target._asdict())
        taken = time.perf_counter() - started
        del given
        params = safetensors_mmap.MappedArrays(weights)
        loaded = cls(impl, model, target, params, hparams, *rest, **named)
        loaded.load_seconds.append(taken)
        if getattr(impl, "weights", None) is not None:
            loaded.judge_by(own_weights.kept(loaded.own_weights()))
        return loaded

    def own_weights(self) -> own_weights.Effective:
        """The weights that it says it multiplies with. Raises ContractBroken if one is missing."""
        return own_weights.Effective(self.impl.weights(self.model), self.hparams, self.array)

    def judge_by(self, params: safetensors_mmap.MappedArrays) -> None:
        """Judge it by its own weights where they differ from the checkpoint's by more than rounding.

        Each operation is. What the whole model gives is judged by them only if it declares them and they
        are near the checkpoint's: otherwise the checkpoint's logits are expected.
        """
        if not own_weights.differ(params, self.checkpoint, self.target.dtype):
            return
        self.params = params
        if self.declared_weights() == QUANTIZED and own_weights.near(params, self.checkpoint):
            self.records = [self.recorded_anew(record) for record in self.golden]

    def recorded_anew(self, record: Record) -> Record:
        """The record of the same tokens with its own weights."""
        case = Case(record.name, record.tokens, shape_of(record).n_new)
        folder = self.folder if record.name == FRESH else None
        return truth.record(case, self.params, self.hparams, self.target.dtype, folder)

    def declared_weights(self) -> str:
        """Whose weights it declares to multiply with: CHECKPOINT or QUANTIZED."""
        return str(getattr(self.impl, "WEIGHTS", CHECKPOINT))

    def other(self, params: dict[str, np.ndarray], hparams: HParams) -> "Loaded":
        """The same implementation with a model of these weights, float32 by checkpoint name.

        It gets copies, in the memory order that it asks for. If it declares weights of its own, it is
        judged by those.
        """
        fortran = weight_layout.of(self.impl) == "F"
        given = {
            name: np.array(w, order="F" if fortran and name.endswith("/w") else "C")
            for name, w in params.items()
        }
        model = self.impl.load(given, hparams, **self.target._asdict())
        loaded = Loaded(self.impl, model, self.target, params, hparams, [])  # type: ignore[arg-type]
        if self.declared_weights() == QUANTIZED:
            loaded.params = {n: np.array(w) for n, w in loaded.own_weights().items()}  # type: ignore[assignment]
        return loaded

    def plan(self, capabilities: Sequence[Capability]) -> Plan:
        """The plan of a run: its cases, its taps, and the given capabilities that it offers.

        Raises ContractBroken if TAPS promises names that the contract does not have.
        """
        known = tap_names(self.hparams.n_layer)
        promised = getattr(self.impl, "TAPS", None)
        if promised is None:  # no promise: every later pass must deliver the taps of a first probe
            promised = self.tapped(self.records[0].tokens).taps
        elif promised == "all":
            promised = known
        elif unknown := set(promised) - set(known):
            raise ContractBroken(f"TAPS promises {sorted(unknown)}, which are not taps of the contract")
        taps = tuple(name for name in known if name in promised)
        cases = tuple(shape_of(record) for record in self.records)
        offers = tuple(each for each in capabilities if getattr(self.impl, each.name, None) is not None)
        return Plan(
            self.hparams,
            cases,
            taps,
            offers,
            cache=self.cache(),
            weights=self.declared_weights(),
            reloads=str(getattr(self.impl, "RELOADS", "")),
        )

    def cache(self) -> str:
        """What forward does with the cache that it is given, as declared: KEPT, IN_PLACE or NO_CACHE."""
        declared = getattr(self.impl, "CACHE", KEPT)
        return NO_CACHE if declared is None else str(declared)

    def broken(self) -> str:
        """The error that a single valid token raises now; "" if there is none.

        After an assertion has failed on a CUDA device, every later call of the process fails.
        """
        try:
            self.forward(np.zeros((1, 1), np.int32))
        except (Exception, SystemExit) as error:
            return " ".join(str(error).split())[:200] or type(error).__name__
        return ""

    def forward(
        self,
        tokens: np.ndarray,
        past: Any = None,
        tap: Callable[[str, Any], None] | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Logits [batch, n, n_vocab] of tokens int32 [batch, n] on the host, and the cache.

        Raises ContractBroken unless it returns a pair and the logits have that shape.
        """
        returned = self.returned(tokens, past, tap)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ContractBroken(
                f"forward returned {describe(returned)}, the contract says (logits, cache)"
            )
        logits, present = returned
        return self.host("logits", logits, tokens.shape), present

    def in_chunks(self, tokens: np.ndarray, cuts: Sequence[int]) -> np.ndarray:
        """Logits [batch, n, n_vocab] of tokens int32 [batch, n], decoded in chunks between the cuts."""
        parts, past = [], None
        for chunk in np.split(tokens, cuts, axis=1):
            logits, past = self.forward(chunk, past)
            parts.append(logits)
        return np.concatenate(parts, axis=1)

    def returned(self, tokens: np.ndarray, past: Any, tap: Callable[[str, Any], None] | None) -> Any:
        """What its forward returns, unchecked and not copied."""
        return self.impl.forward(self.model, np.array(tokens), past, tap)

    def host(self, name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A copy on the host of logits or of a tap; shape: [batch, n].

        Raises ContractBroken unless it is floating [batch, n, width].
        """
        axes = "[batch, n, n_vocab] of every position" if name == "logits" else "[batch, n, width]"
        return self.array(name, value, (*shape, tap_width(name, self.hparams)), axes)

    def array(self, name: str, value: Any, shape: tuple[int, ...], axes: str) -> np.ndarray:
        """A copy on the host of an array that an implementation returned; bfloat16 becomes float32.

        axes: the shape in words. Raises ContractBroken unless it is floating and of that shape.
        """
        given = self.impl.numpy(value)
        if not isinstance(given, np.ndarray):
            raise ContractBroken(f"numpy(x) returned {describe(given)}, the contract says a NumPy array")
        if given.dtype.name == "bfloat16":  # not a NumPy dtype: JAX's arrays convert to it
            given = given.astype(np.float32)
        if given.shape != shape or not np.issubdtype(given.dtype, np.floating):
            raise ContractBroken(
                f"{name} is {describe(given)}, the contract says floating {shape}: {axes}"
            )
        return np.array(given)

    def logits(self, record: Record) -> np.ndarray:
        """Logits [batch, n, n_vocab] of a record's prefill without taps; computed once."""
        if record.name not in self._logits:
            self._logits[record.name] = self.forward(record.tokens)[0]
        return self._logits[record.name]

    def tapped(self, tokens: np.ndarray, past: Any = None) -> "Tapped":
        """One forward pass of tokens int32 [batch, n] with taps on.

        Raises ContractBroken for a tap that is unknown, repeated or misshapen.
        """
        taps: dict[str, np.ndarray] = {}
        known = frozenset(tap_names(self.hparams.n_layer))

        def tap(name: str, value: Any) -> None:
            if name not in known:
                raise ContractBroken(f"tap {name!r} is not in the contract; names must match exactly")
            if name in taps:
                raise ContractBroken(f"tap {name} came twice in one forward pass")
            taps[name] = self.host(name, value, tokens.shape)

        logits, present = self.forward(tokens, past, tap)
        return Tapped(logits, taps, present)

    def prefill(self, record: Record) -> "Tapped":
        """The tapped prefill of a record. The latest one is kept, because several checks use it."""
        if self._latest is None or self._latest[0] != record.name:
            self._latest = (record.name, self.tapped(record.tokens))
        return self._latest[1]

    def tokens_are_the_cache(self, tapped: "Tapped", tokens: np.ndarray) -> bool:
        """Whether the cache after tokens int32 [batch, n] is just these: it computes all anew."""
        if not isinstance(tapped.present, (np.ndarray, list, tuple)) and not hasattr(
            tapped.present, "__array__"
        ):
            return False
        try:
            return np.array_equal(np.asarray(tapped.present), tokens)
        except (TypeError, ValueError, RuntimeError):  # not an array after all, or on a device
            return False

    def decode(self, record: Record, cuts: Sequence[int]) -> "Tapped":
        """The tapped decode of a record's tokens in chunks between the cuts, put together again."""
        parts, past = [], None
        for tokens in np.split(record.tokens, cuts, axis=1):
            parts.append(self.tapped(tokens, past))
            past = parts[-1].present
        names = [name for name in parts[0].taps if all(name in part.taps for part in parts)]
        taps = {name: np.concatenate([part.taps[name] for part in parts], axis=1) for name in names}
        return Tapped(np.concatenate([part.logits for part in parts], axis=1), taps, past)

    def units(self, got: np.ndarray, want: np.ndarray, record: Record) -> float:
        """Greatest difference of logits [batch, n, n_vocab] in the record's noise units at the dtype."""
        return max_abs(got, want) / record.noise(self.target.dtype)
