"""Planted faults: the smallest edits of a correct specimen that make it wrong, on one shelf.

A fault is a change of source text of impls/gpt2_numpy.py (where it lies on the way back from the loss, or
in bfloat16, of gpt2_torch.py), with what must come of it: the checks
that must trip, the scopes that must be blamed (patterns; one that ends in "?" may be missing, where the
fault is below rounding there), and the diagnosis, where a named mistake exists. A fault that
does not apply, because its text is not there exactly once, is an error and never a score.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from gpt2_parity.implementation.discovery import IMPLS, Found

SPECIMEN = IMPLS / "gpt2_numpy.py"
DIFFERENTIABLE = IMPLS / "gpt2_torch.py"  # and offers bfloat16
JAX = IMPLS / "gpt2_jax.py"
Edit = tuple[str, str]


class Fault(NamedTuple):
    """A planted mistake and what must come of it."""

    name: str
    edits: Sequence[Edit]
    blame: frozenset[str]
    diagnosis: str  # "" where no known mistake fits exactly
    trips: frozenset[str]  # checks that must fail, besides any others
    specimen: Path = SPECIMEN
    dtype: str = "float32"
    device: str = "cpu"


FAULTS: list[Fault] = []


def plant_all(name: str, *edits: Edit, blame: str, diagnosis: str = "", trips: str = "") -> None:
    """Put a fault on the shelf; blame and trips are words."""
    FAULTS.append(Fault(name, edits, frozenset(blame.split()), diagnosis, frozenset(trips.split())))


# Where the specimen is edited: an operation's result, the weights, the logits, some code besides.

STEP = "    def step(leaf, value):\n"
LOAD = "    return Model({name: np.asarray(w, dtype) for name, w in params.items()}, hparams, dtype)"
LOGITS = '    return x @ p["wte"].T, present'
HEAD_OF_FILE = "TAPS = "


def result(leaf: str, expression: str, where: str = "True") -> Edit:
    """The value of one step of a block, before it is tapped and passed on."""
    return STEP, f'{STEP}        if leaf == "{leaf}" and {where}:\n            value = {expression}\n'


def weights(code: str) -> Edit:
    """Code that changes the dict p of weights as they are loaded."""
    return LOAD, (
        "    p = {name: np.array(w, dtype) for name, w in params.items()}\n"
        f"    {code}\n    return Model(p, hparams, dtype)"
    )


def logits(code: str) -> Edit:
    """Code that changes the array logits before it is returned."""
    return LOGITS, f'    logits = x @ p["wte"].T\n    {code}\n    return logits, present'


def instead(body: str, code: str) -> Edit:
    """Code that returns before the body of a function, given by its first line, is reached."""
    return body, f"    {code}\n{body}"


def helper(code: str) -> Edit:
    return HEAD_OF_FILE, f"{code}\n{HEAD_OF_FILE}"


def rounding(bits: int) -> Edit:
    """cut(x): float32 rounded to nearest with so many bits dropped."""
    return helper(
        "def cut(x):\n"
        "    i = np.ascontiguousarray(x, np.float32).view(np.uint32)\n"
        f"    i = i + np.uint32(2**{bits - 1} - 1) + ((i >> {bits}) & 1)\n"
        f"    i = i & np.uint32(2**32 - 2**{bits})\n"
        "    return i.view(np.float32)\n"
    )


KEEP = "    keep = (lambda"
BLACK_BOX = (  # taps nothing
    ('TAPS = "all"', "TAPS = ()"),
    (KEEP, f"    tap = None\n{KEEP}"),
)


# -- arithmetic: the activation

GELU = "    rows = x.reshape(-1, x.shape[-1])\n"
TANH = "return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))))"
ERF = helper("ERF = np.vectorize(math.erf, otypes=[float])")
for _name, _code in {
    "sigmoid_gelu": "return x / (1 + np.exp(-1.702 * x))",
    "relu": "return np.maximum(x, 0)",
    "silu": "return x / (1 + np.exp(-x))",
    "gelu_skipped": "return x + 0",
    "gelu_without_half": TANH.replace("0.5 * ", ""),
    "gelu_cubic_missing": TANH.replace("0.044715", "0.0"),
    "gelu_cubic_0.44715": TANH.replace("0.044715", "0.44715"),
    "gelu_cubic_0.0447": TANH.replace("0.044715", "0.0447"),
    "gelu_root_0.8": TANH.replace("math.sqrt(2 / math.pi)", "0.8"),
    "gelu_root_0.7979": TANH.replace("math.sqrt(2 / math.pi)", "0.7979"),
}.items():
    plant_all(_name, instead(GELU, _code), blame="h*/mlp/gelu", diagnosis=_name, trips="local")
plant_all(
    "erf_gelu",
    ERF,
    instead(GELU, "return (0.5 * x * (1 + ERF(x / math.sqrt(2)))).astype(x.dtype)"),
    blame="h*/mlp/gelu",
    diagnosis="erf_gelu",
    trips="logits activations local",
)
plant_all(
    "gelu_float16_table",
    instead(
        GELU,
        "x = x.astype(np.float16).astype(float)\n    "
        + TANH.replace("return ", "return (")
        + ").astype(np.float16).astype(np.float32)",
    ),
    blame="h*/mlp/gelu",
    diagnosis="gelu_float16_table",
)
plant_all(
    "gelu_in_one_layer_only",
    ERF,
    result(
        "mlp/gelu", "value + 0.5 * PRE * (ERF(PRE / math.sqrt(2)) - np.tanh(0.7978845608 * (PRE + 0.044715 * PRE**3)))",
        'scope == "h2"',
    ),
    ("hidden = step(", "global PRE\n    PRE = None\n    hidden = step("),
    ('gelu(affine("mlp/c_fc", norm("ln_2", x)))', 'gelu(keep(affine("mlp/c_fc", norm("ln_2", x))))'),
    ("def softmax(x):", "def keep(x):\n    global PRE\n    PRE = x.astype(float)\n    return x\n\n\ndef softmax(x):"),
    blame="h2/mlp/gelu",
    diagnosis="erf_gelu",
)  # fmt: skip

plant_all(
    "gelu_wrong_and_numpy_raises",  # which must not stop the verdict's own arithmetic
    (LOAD, f'    np.seterr(all="raise")\n{LOAD}'),
    ("    np.exp(x, out=x)", '    with np.errstate(under="ignore"):\n        np.exp(x, out=x)'),
    ("        y *= 0.044715\n", "        y *= 0.05\n"),
    blame="h*/mlp/gelu",
    trips="local",
)

# -- arithmetic: the norm

NORMS = "h*/ln_1 h*/ln_2 ln_f?"
CENTRED = "    y = x - x.sum(axis=-1, keepdims=True) / x.shape[-1]\n"
VARIANCE = "    variance = np.vecdot(y, y)[..., None] / x.shape[-1]\n"
NORM = "    y /= np.sqrt(variance + eps)\n    y *= g\n    y += b\n"
for _epsilon in ("1e-6", "1e-12", "1e-3"):
    _name = f"epsilon_{float(_epsilon):g}"
    plant_all(
        _name,
        ("eps=1e-5", f"eps={_epsilon}"),
        blame="h*/ln_1 h*/ln_2? ln_f?",
        diagnosis=_name,
        trips="local activations",
    )
for _name, *_edits in (
    ("epsilon_outside_root", (NORM, NORM.replace("np.sqrt(variance + eps)", "np.sqrt(variance) + eps"))),
    (
        "variance_ddof_1",
        (VARIANCE, VARIANCE + "    variance = variance * (x.shape[-1] / (x.shape[-1] - 1))\n"),
    ),
    ("rms_norm", (CENTRED, "    y = x.copy()\n")),
    ("norm_without_bias", (NORM, NORM.replace("    y += b\n", ""))),
    ("norm_without_gain", (NORM, NORM.replace("    y *= g\n", ""))),
    ("norm_gain_plus_1", (NORM, NORM.replace("*= g", "*= 1 + g"))),
    ("norm_gain_bias_swapped", (NORM, NORM.replace("*= g", "*= b").replace("+= b", "+= g"))),
    ("norm_skipped", instead(CENTRED, "return x + 0")),
):
    plant_all(_name, *_edits, blame=NORMS, diagnosis=_name)
plant_all(
    "norm_over_batch",
    (CENTRED, "    y = x - x.mean(axis=0, keepdims=True)\n"),
    (VARIANCE, "    variance = (y * y).mean(axis=0, keepdims=True)\n"),
    blame=NORMS,
    diagnosis="norm_over_batch",
    trips="batch",
)

# -- arithmetic: products

ADDED = 'linear(value, p[f"{scope}/{leaf}/w"], p[f"{scope}/{leaf}/b"])'
PLAIN = "    y = x.reshape(-1, x.shape[-1]) @ w"
PRODUCTS = "h*/attn/c_attn h*/attn/c_proj h*/mlp/c_fc h*/mlp/c_proj"
plant_all("no_bias", instead(PLAIN, "return x @ w"), blame=PRODUCTS, diagnosis="no_bias")
plant_all("bias_twice", instead(PLAIN, "return x @ w + 2 * b"), blame=PRODUCTS, diagnosis="bias_twice")
plant_all(
    "transposed_c_proj",
    (ADDED, ADDED.replace('/w"]', '/w"].T if leaf == "attn/c_proj" else p[f"{scope}/{leaf}/w"]', 1)),
    blame="h*/attn/c_proj",
    diagnosis="transposed",
    trips="logits activations greedy",
)
plant_all(
    "reshaped_c_attn",
    (ADDED, ADDED.replace('p[f"{scope}/{leaf}/w"]', 'turned(p[f"{scope}/{leaf}/w"], leaf)')),
    helper(
        "def turned(w, leaf):\n    return w.reshape(w.shape[::-1]).T if leaf == 'attn/c_attn' else w\n"
    ),
    blame="h*/attn/c_attn",
    diagnosis="transposed",
)

# -- arithmetic and structure: attention

HEADS = "h*/attn/heads"
SCALE = "    q = q * (1 / math.sqrt(q.shape[-1]))\n"
MASK = "np.arange(n_keys) <= np.arange(n_keys - n, n_keys)[:, None]"  # key j <= query position
HIDE = "            np.copyto(scores[..., n_past + start :], -np.inf, where=future)\n"
PROBS = "        heads[:, start:stop] = (softmax(scores) @ v.swapaxes(-1, -2)).swapaxes(1, 2)\n"
SPLIT = "    q, k, v = qkv.reshape(batch, n, 3, n_head, width // 3 // n_head).transpose(2, 0, 3, 1, 4)\n"
WHOLE = (
    "QUERIES = 64 ",
    "QUERIES = 10**6 ",
)  # all queries at once, so that keys of the future are there


def mask(visible: str, hidden: str = "-np.inf") -> tuple[Edit, Edit, Edit]:
    """Another mask, and what hides: over all keys, of which there are n_keys."""
    code = f"np.copyto(scores, {hidden}, where=~({visible}))"
    return WHOLE, (HIDE, ""), (PROBS, f"        n_keys = n_past + n\n        {code}\n{PROBS}")


def probs(*code: str) -> Edit:
    """Lines that make the probabilities of the scores."""
    lines = "".join(f"        {line}\n" for line in code)
    return PROBS, lines + PROBS.replace("softmax(scores)", "probs")


def merged(expression: str) -> Edit:
    """Another way from probabilities @ v [batch, n_head, queries, head] to [batch, queries, n_head, head]."""
    return (
        PROBS,
        f"        y = softmax(scores) @ v.swapaxes(-1, -2)\n        heads[:, start:stop] = {expression}\n",
    )


for _name, _edits, _trips in (
    ("no_scale", [(SCALE, "")], "logits activations greedy"),
    ("scale_without_root", [(SCALE, SCALE.replace("math.sqrt(q.shape[-1])", "q.shape[-1]"))], ""),
    ("scale_by_n_embd", [(SCALE, SCALE.replace("q.shape[-1]", "width // 3"))], ""),
    ("mask_one_too_far", mask(f"{MASK} + 1"), "causality kv_cache"),
    ("mask_hides_itself", mask(MASK.replace("<=", "<"), "-1e30"), ""),
    ("mask_too_weak", mask(MASK, "-10"), "causality"),
    ("softmax_over_heads", [WHOLE, (HIDE, HIDE.replace("-np.inf", "-1e30")),
        probs("probs = softmax(scores.swapaxes(1, 3)).swapaxes(1, 3)")], ""),
    ("mask_after_softmax", [WHOLE, (HIDE, ""),
        probs("probs = softmax(scores)", "np.copyto(probs[..., n_past:], 0, where=~np.tri(n, dtype=bool))")], ""),
    ("heads_not_transposed", [WHOLE, merged("y.reshape(batch, n, n_head, -1)")], ""),
    ("heads_dropped", [merged("y.swapaxes(1, 2) * (np.arange(n_head) != 1)[:, None]")], ""),
    ("heads_swapped", [merged("y[:, [0, 2, 1, *range(3, n_head)]].swapaxes(1, 2)")], ""),
    ("heads_interleaved", [merged("y.transpose(0, 2, 3, 1).reshape(batch, stop - start, n_head, -1)")], ""),
    ("order_kqv", [(SPLIT, SPLIT + "    q, k = k, q\n")], ""),
    ("order_vkq", [(SPLIT, SPLIT + "    q, v = v, q\n")], ""),
    ("order_qvk", [(SPLIT, SPLIT + "    k, v = v, k\n")], ""),
    ("order_kvq", [(SPLIT, SPLIT + "    q, k, v = k, v, q\n")], ""),
):  # fmt: skip
    plant_all(_name, *_edits, blame=HEADS, diagnosis=_name, trips=_trips)
plant_all(
    "mask_too_weak_in_a_black_box",  # decode hides nothing and so is right, but is not what prefill was
    *BLACK_BOX,
    *mask(MASK, "-5"),
    blame="causality",
    trips="causality kv_cache logits",
)
plant_all(
    "padding_visible",
    probs(
        "padding = np.zeros_like(scores, shape=(*scores.shape[:-1], 4))",
        "probs = softmax(np.concatenate([scores, padding], axis=-1))[..., :-4]",
    ),
    blame=HEADS,
    diagnosis="padding_visible",
)
plant_all(
    "heads_split_interleaved",
    (SPLIT, SPLIT.replace("batch, n, 3, n_head, width // 3 // n_head", "batch, n, n_head, 3, width // 3 // n_head")
        .replace("(2, 0, 3, 1, 4)", "(3, 0, 2, 1, 4)")),
    blame=HEADS, diagnosis="heads_interleaved",
)  # fmt: skip
plant_all(
    "softmax_temperature_1.0005", (SCALE, SCALE.replace("(1 /", "(1.0005 /")), blame=HEADS, diagnosis="softmax_temperature",
)  # fmt: skip
plant_all(
    "softmax_overflows_in_float16",
    (
        "    x -= x.max(axis=-1, keepdims=True)\n    np.exp(x, out=x)\n",
        "    x = np.exp(20 * x.astype(np.float16)).astype(x.dtype) ** 0.05\n",
    ),
    helper("np.seterr(all='ignore')"),
    blame=HEADS,
)
plant_all(
    "float16_softmax",
    probs(
        "scores = scores.astype(np.float16).astype(np.float32)",
        "probs = softmax(scores).astype(np.float16).astype(np.float32)",
    ),
    blame=HEADS,
    diagnosis="float16_softmax",
)
plant_all(
    "bfloat16_probabilities",
    rounding(16),
    probs("probs = cut(softmax(scores))"),
    blame=HEADS,
    diagnosis="bfloat16_probabilities",
)

# -- structure

X1 = '    x = step("resid_mid", x + affine("attn/c_proj", heads))\n'
X2 = '    x = x + affine("mlp/c_proj", hidden)\n'
LN2 = 'affine("mlp/c_fc", norm("ln_2", x))'
plant_all(
    "norms_exchanged",
    ('g"], p[f"{scope}/{leaf}/b"]))', 'g"], p[f"{scope}/{leaf}/b"]))'),
    weights('p.update({f"h{i}/ln_{j}/{c}": np.array(params[f"h{i}/ln_{3 - j}/{c}"], dtype)'
            ' for i in range(hparams.n_layer) for j in (1, 2) for c in "gb"})'),
    blame="h*/ln_1 h*/ln_2",
    diagnosis="other_weights",
)  # fmt: skip
plant_all("mlp_parallel_to_attention", (X1, X1.replace("x = step", "x0 = x\n    x = step", 1)),
          (LN2, LN2.replace("x)", "x0)")), blame="h*/ln_2", diagnosis="other_input")  # fmt: skip
plant_all("residual_after_norm", (X1, X1.replace('"resid_mid", x +', '"resid_mid", layer_norm(x, '
          'p[f"{scope}/ln_1/g"], p[f"{scope}/ln_1/b"]) +')), blame="h*/resid_mid",
          diagnosis="residual_source")  # fmt: skip
plant_all("residual_missing", (X2, X2.replace("x + ", "")), blame="h?", diagnosis="residual_missing")
plant_all("branch_missing", (X2, X2.replace("x + affine", "x + 0 * affine")), blame="h?",
          diagnosis="branch_missing")  # fmt: skip
plant_all("residual_twice", (X1, X1.replace("x + affine", "2 * x + affine")), blame="h*/resid_mid",
          diagnosis="residual_twice")  # fmt: skip
plant_all(
    "branch_subtracted", (X2, X2.replace("x + ", "x - ")), blame="h?", diagnosis="branch_subtracted"
)
plant_all(
    "layers_exchanged",
    weights('p.update({n.replace("h1/", "H/").replace("h2/", "h1/").replace("H/", "h2/"): p[n]'
            ' for n in list(p) if n[:3] in ("h1/", "h2/")} | {}) if not p.pop("", None) else None'),
    blame=" ".join(f"h{{1,2}}/{leaf}" for leaf in
                   ("ln_1", "ln_2", "attn/c_attn", "attn/c_proj", "mlp/c_fc", "mlp/c_proj")),
    diagnosis="other_weights",
)  # fmt: skip
plant_all(
    "layer_skipped",
    ("    tap(scope, x)\n", '    x = x0 if scope == "h2" else x\n    tap(scope, x)\n'),
    (X1, X1.replace("x = step", "x0 = x\n    x = step", 1)),
    blame="h2",
    diagnosis="passed_on",
)
plant_all(
    "last_layer_not_run",
    ("for i in range(hparams.n_layer):", "for i in range(hparams.n_layer - 1):"),
    blame="h3*",
    trips="logits activations",
)
plant_all(
    "no_positions", (' + p["wpe"][n_past : n_past + n]', ""), blame="embed", diagnosis="no_positions"
)
plant_all(
    "positions_from_1",
    ('p["wpe"][n_past : n_past + n]', 'np.roll(p["wpe"], -1, axis=0)[n_past : n_past + n]'),
    blame="embed",
    diagnosis="positions_from_1",
)
plant_all(
    "embedding_scaled",
    ('p["wte"][tokens] +', 'math.sqrt(p["wte"].shape[1]) * p["wte"][tokens] +'),
    blame="embed",
    diagnosis="embedding_scaled",
)
plant_all(
    "head_without_ln_f",
    ('    x = layer_norm(x[:, -1:] if last_only else x, p["ln_f/g"], p["ln_f/b"])\n    keep("ln_f", x)\n',
     '    keep("ln_f", layer_norm(x, p["ln_f/g"], p["ln_f/b"]))\n'),
    blame="logits",
    diagnosis="head_without_ln_f",
)  # fmt: skip
plant_all(
    "head_of_neighbours",
    (LOGITS, '    return x @ np.roll(p["wte"], 1, axis=0).T, present'),
    blame="logits",
    diagnosis="head_shifted",
    trips="logits greedy",
)

# -- weights

ELEMENT = "p['{}'][{}] *= 1.01"
for _name, _where, _blame in (
    ("h1/attn/c_attn/w", "5, 300", "h1/attn/c_attn"),
    ("h2/attn/c_proj/w", "100, 3", "h2/attn/c_proj"),
    ("h0/mlp/c_fc/w", "77, 400", "h0/mlp/c_fc"),
    ("h3/mlp/c_proj/w", "pair", "h3/mlp/c_proj"),
):
    _code = ELEMENT.format(_name, _where)
    if _where == "pair":  # one of the larger weights: 1 % of a weight near zero is below rounding
        _code = (
            f"i = np.unravel_index(np.abs(p['{_name}']).argmax(), (512, 128)); p['{_name}'][i] *= 1.01"
        )
    plant_all(
        f"one_percent_of_{_name.replace('/', '_')}",
        weights(_code),
        blame=_blame,
        diagnosis="one_weight",
        trips="local",
    )
plant_all(
    "one_percent_in_the_very_array_that_was_given",  # mapped: who judges by it, too, sees nothing wrong
    (LOAD, f"    params['h1/mlp/c_fc/w'][77, 400] *= 1.01\n{LOAD}"),
    blame="h1/mlp/c_fc",
    diagnosis="one_weight",
    trips="local",
)
plant_all(
    "one_bias_of_c_attn",  # at a single position it could be any weight of that column
    weights("p['h1/attn/c_attn/b'][5] += 0.01"),
    blame="h1/attn/c_attn",
    diagnosis="one_bias",
    trips="local",
)
plant_all("one_percent_of_ln_g", weights("p['h2/ln_2/g'][17] *= 1.01"), blame="h2/ln_2")
plant_all("one_percent_of_wpe", weights("p['wpe'][200, 9] *= 1.01"), blame="embed", trips="weights")
plant_all(
    "one_percent_of_wte", weights("p['wte'][901, 9] *= 1.01"), blame="embed logits", trips="weights"
)
plant_all(
    "embedding_row_lost_beside_a_right_head",
    (
        'p["wte"][tokens] +',
        'np.where(tokens[..., None] == 333, 0, p["wte"][tokens]).astype(p["wte"].dtype) +',
    ),
    blame="embed",
    trips="weights",
)
plant_all(
    "embedding_row_lost_in_a_black_box",  # of a token in no prompt
    *BLACK_BOX,
    (
        'p["wte"][tokens] +',
        'np.where(tokens[..., None] == 333, 0, p["wte"][tokens]).astype(p["wte"].dtype) +',
    ),
    blame="embed",
    trips="weights",
)
plant_all(
    "weight_rows_exchanged",
    weights("p['h1/mlp/c_fc/w'][[3, 90]] = p['h1/mlp/c_fc/w'][[90, 3]]"),
    blame="h1/mlp/c_fc",
    diagnosis="inputs_swapped",
)
plant_all(
    "weight_columns_exchanged",
    weights("p['h1/attn/c_attn/w'][:, [3, 90]] = p['h1/attn/c_attn/w'][:, [90, 3]];"
            " p['h1/attn/c_attn/b'][[3, 90]] = p['h1/attn/c_attn/b'][[90, 3]]"),
    blame="h1/attn/c_attn",
    diagnosis="columns_swapped",
)  # fmt: skip
plant_all(
    "vocabulary_rows_exchanged",
    weights("p['wte'][[20, 30]] = p['wte'][[30, 20]]"),
    blame="embed logits",
)
ALL_W = "p.update({n: %s for n, w in p.items() if n.endswith('/w')})"
plant_all(
    "bfloat16_weights", rounding(16), weights(ALL_W % "cut(w).astype(dtype)"), blame=PRODUCTS,
    diagnosis="bfloat16_weights", trips="precision",
)  # fmt: skip
plant_all(
    "float16_weights", weights(ALL_W % "w.astype(np.float16).astype(dtype)"), blame=PRODUCTS,
    diagnosis="float16_weights",
)  # fmt: skip
plant_all(
    "int8_weights",
    weights("s = {n: np.abs(w).max(0, keepdims=True) / 127 for n, w in p.items()}\n    "
            + ALL_W % "(np.round(w / s[n]) * s[n]).astype(dtype)"),
    blame=PRODUCTS, diagnosis="int8_weights",
)  # fmt: skip

# -- cache

CACHE = "    kv[0, ..., new], kv[1, ..., new] = k.swapaxes(-1, -2), v.swapaxes(-1, -2)\n"
LATE = "h*/attn/heads*(decode)"


def cached(keys_or_values: int, expression: str) -> Edit:
    """The cached part, called old, of keys (0) or values (1) put in another way."""
    code = f"    old = kv[{keys_or_values}, ..., :n_past]\n    old[:] = {expression}\n"
    return CACHE, code + CACHE


plant_all(
    "cache_position_not_advanced",
    ('p["wpe"][n_past : n_past + n]', 'p["wpe"][0:n]'),
    blame="embed*(decode)",
    diagnosis="cache_position",
    trips="kv_cache greedy lengths",
)
plant_all(
    "cache_position_one_short",
    ('p["wpe"][n_past : n_past + n]', 'p["wpe"][n_past - (n_past > 0) : n_past - (n_past > 0) + n]'),
    blame="embed*(decode)",
    diagnosis="cache_position",
)
for _name, _edits, _diagnosis in (
    ("cache_mask_like_prefill", mask("np.arange(n_keys) <= np.arange(n)[:, None]"), "cache_mask"),
    ("cache_chunk_sees_its_future", mask(f"({MASK}) | ((n_keys > n) & (np.arange(n_keys) >= n_keys - n))"),
     "no_mask"),
    ("cache_last_key_missing", mask(f"({MASK}) & ~((n_keys > n) & (np.arange(n_keys) == n_keys - n - 1))"),
     "cache_mask"),
    ("cache_first_key_missing", mask(f"({MASK}) & ~((n_keys > n) & (np.arange(n_keys) == 0))"), "cache_mask"),
    ("cache_stale_keys", [cached(0, "np.roll(old, 1, axis=-1)")], "cache_stale"),
    ("cache_rows_exchanged", [cached(1, "old[::-1].copy()")], "cache_stale"),
    ("cache_in_float16", [cached(0, "old.astype(np.float16)")], ""),
):  # fmt: skip
    plant_all(_name, *_edits, blame=LATE, diagnosis=_diagnosis, trips="local kv_cache")

plant_all(
    "cache_continued_over_another_continuation",
    ("if past and past.filled == [n_past] and n_past", "if past and n_past"),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "cache_of_the_latest_call",  # whatever past it is given
    (
        "    present = extended(past,",
        "    past = LATEST[0] if past else None\n    LATEST[0] = present = extended(past,",
    ),
    helper("LATEST = [None]\n"),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "cache_last_block_of_keys_incomplete",  # one query, and more keys than one block has
    (
        "        k, v = kv[..., : n_past + stop]",
        "        seen = n_past + stop\n        seen -= seen % 64 if n == 1 and seen > 64 else 0\n        k, v = kv[..., :seen]",
    ),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "cache_wrong_in_the_middle_of_the_context",
    (
        '    keep("embed", x)',
        '    x = x * (1.5 if n == 1 and 64 <= n_past < hparams.n_ctx - 1 else 1)\n    keep("embed", x)',
    ),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "cache_empty_when_continued_again",
    (
        "        kv[..., :n_past] = past.kv[..., :n_past]\n",
        "        kv[..., :n_past] = past.kv[..., :n_past] if past.filled == [n_past] else 0\n",
    ),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "cache_shared_by_all_prefills",
    ("    kv = np.empty(", "    kv = pooled(past, "),
    helper(
        "POOL = {}\n\n\ndef pooled(past, shape, dtype):\n"
        "    fresh = np.empty(shape, dtype)\n"
        "    return fresh if past else POOL.setdefault((shape, dtype), fresh)\n\n"
    ),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "cache_forgets_where_a_page_begins",
    (
        "    new = slice(n_past, n_past + n)\n",
        "    if n == 1 and n_past and n_past % 64 == 0:\n        kv[..., :n_past] = 0\n"
        "    new = slice(n_past, n_past + n)\n",
    ),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "cache_lost_with_every_page",  # which only a long text generated through it shows
    (CACHE, f"    if n == 1 and n_past and n_past % 32 == 0:\n        kv[..., :n_past] = 0\n{CACHE}"),
    blame="cache",
    trips="greedy kv_cache",
)
plant_all(
    "cache_forgets_the_past",
    ("    n = tokens.shape[1]\n", "    n, n_past = tokens.shape[1], 0\n"),
    blame=f"embed*(decode) {LATE}",
    trips="kv_cache",
)

# -- batch, tokens, lengths

plant_all(
    "batch_rows_exchanged",
    logits("logits = logits[::-1]"),
    blame="logits",
    diagnosis="batch_rows",
    trips="logits greedy batch",
)
plant_all(
    "token_taken_for_padding",
    (
        "    n = tokens.shape[1]\n",
        "    n = tokens.shape[1]\n"
        "    PADDING[0] = np.concatenate([*[old[:, :n_past] for old in PADDING if n_past], tokens == 0], 1)\n",
    ),
    probs(
        "hidden = np.broadcast_to(PADDING[0][:, None, None, : n_past + stop], scores.shape)",
        "np.copyto(scores, -1e30, where=hidden & (scores > -np.inf))",
        "probs = softmax(scores)",
    ),
    helper("PADDING = [None]\n"),
    blame=HEADS,
    diagnosis="token_as_padding",
    trips="local logits",
)
plant_all(
    "batch_all_like_the_first",
    logits("logits = np.broadcast_to(logits[:1], logits.shape)"),
    blame="logits",
    diagnosis="batch_rows",
)
plant_all(
    "batch_leaks_into_attention",
    (PROBS, PROBS + "        heads[:, start:stop] += 1e-3 * heads[:, start:stop].mean(0)\n"),
    blame=HEADS,
    trips="batch",
)
plant_all(
    "batch_leaks_beyond_the_first_block_of_queries",
    (
        "        scores = q[:, :, start:stop] @ k  # [",
        "        if start:\n            k, v = np.broadcast_to(k[:1], k.shape), np.broadcast_to(v[:1], v.shape)\n"
        "        scores = q[:, :, start:stop] @ k  # [",
    ),
    blame="batch",
    trips="batch",
)
plant_all("negative_tokens_wrap", ("tokens.min() < 0 or ", ""), blame="tokens", trips="bad_tokens")
plant_all(
    "tokens_clamped",
    ("    refuse_bad_tokens(tokens, n_past, hparams)\n",
     "    tokens = np.clip(tokens, 0, hparams.n_vocab - 1)\n    refuse_bad_tokens(tokens, n_past, hparams)\n"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "token_exchanged_in_the_very_array_that_was_given",
    (
        "    tokens = np.asarray(tokens)\n",
        "    tokens = np.asarray(tokens)\n    tokens[tokens == 300] = 7\n",
    ),
    blame="embed",
    trips="weights",
)
plant_all(
    "too_long_accepted",
    ("    if n_past + tokens.shape[1] > hparams.n_ctx:", "    if False:"),
    (' + p["wpe"][n_past : n_past + n]', ' + p["wpe"][np.arange(n_past, n_past + n) % hparams.n_ctx]'),
    ("room = min(2 * (n_past + n), n_ctx)", "room = 2 * (n_past + n)"),
    blame="tokens",
    trips="bad_tokens",
)
plant_all(
    "bad_tokens_accepted_in_a_second_row",
    ("tokens.min() < 0 or tokens.max()", "tokens[0].min() < 0 or tokens[0].max()"),
    ('p["wte"][tokens]', 'p["wte"][tokens.clip(0, hparams.n_vocab - 1)]'),
    blame="tokens",
    trips="bad_tokens",
)
plant_all(
    "tokens_pushed_back_from_the_end_of_the_cache",  # as dynamic_update_slice clamps
    ("    if n_past + tokens.shape[1] > hparams.n_ctx:", "    if n_past >= hparams.n_ctx or tokens.shape[1] > hparams.n_ctx:"),
    ("    present = extended(past,", "    n_past = min(n_past, hparams.n_ctx - n)\n    present = extended(past,"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "bad_tokens_accepted_by_generate",
    ("    new = []\n    logits, past = forward", "    new, tokens = [], np.clip(tokens, 0, model.hparams.n_vocab - 1)\n    logits, past = forward"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "dead_once_it_has_refused",
    ('        raise ValueError(f"token ids must be in', '        BROKEN.append(True)\n        raise ValueError(f"token ids must be in'),
    ("    refuse_bad_tokens(tokens, n_past, hparams)\n", "    refuse_bad_tokens(tokens, n_past, hparams)\n    assert not BROKEN\n"),
    helper("BROKEN = []"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "n_ctx_off_by_one",
    ("> hparams.n_ctx:", ">= hparams.n_ctx:"),
    blame="*",
    trips="lengths logits",
)

plant_all(
    "heads_and_layers_mixed_up",  # micro has four of each
    (LOAD, "    hparams = hparams._replace(n_head=hparams.n_layer, n_layer=hparams.n_head)\n" + LOAD),
    blame="sizes",
    trips="sizes",
)
plant_all(
    "last_tokens_of_an_odd_vocabulary_lost",
    logits("logits[..., logits.shape[-1] // 8 * 8 :] = 0"),
    blame="sizes",
    trips="sizes",
)
plant_all(
    "position_wrong_in_a_black_box",  # which prompts of one token do not have
    *BLACK_BOX,
    weights("p['wpe'][3, 9] += 0.1"),
    blame="logits",
    trips="logits lengths",
)

# -- the way back from the loss, in the PyTorch specimen: its forward pass stays right

LOSS = "    loss = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:])\n"
GRADS = "    return loss.item(), dict(zip(params, grads, strict=True))"
LOOKUP = 'F.embedding(tokens, p["wte"])'
BACK = "torch.is_grad_enabled()"


def on_the_way_back(name: str, *edits: Edit) -> None:
    """A fault of loss_and_grads alone."""
    fault = Fault(name, edits, frozenset({"gradients"}), "", frozenset({"gradients"}), DIFFERENTIABLE)
    FAULTS.append(fault)


def grads(code: str) -> Edit:
    """Code that changes the dict g of gradients before it is returned."""
    return GRADS, f"    g = dict(zip(params, grads, strict=True))\n    {code}\n    return loss.item(), g"


FAULTS.append(
    Fault(
        "bad_tokens_accepted_by_the_loss",
        [
            (
                "    refuse_bad_tokens(tokens, 0, model.hparams)\n",
                "    tokens = tokens.clamp(0, model.hparams.n_vocab - 1)\n",
            )
        ],
        frozenset({"tokens"}),
        "",
        frozenset({"bad_tokens"}),
        DIFFERENTIABLE,
    )
)
on_the_way_back("loss_summed", (LOSS, LOSS.replace("1:])", '1:], reduction="sum")')))
on_the_way_back("loss_in_bits", (LOSS, LOSS + "    loss = loss / 0.6931471805599453\n"))
on_the_way_back("loss_of_the_same_token", (LOSS, LOSS.replace("1:]", ":-1]")))
on_the_way_back(
    "loss_without_the_last_token", (LOSS, LOSS.replace("2)", "2)[..., :-1]").replace("1:]", "1:-1]"))
)
on_the_way_back(
    "loss_in_pieces_that_loses_what_lies_between",
    (
        LOSS,
        "    kept = torch.arange(logits.shape[1]) % 64 != 63\n"
        + LOSS.replace("logits.", "logits[:, kept].").replace("1:]", "1:][:, kept]"),
    ),
)
on_the_way_back(
    "long_text_cut_off_before_the_loss",
    ("    tokens = tokens.to(model.device)\n    params = {", "    tokens = tokens[:, :128].to(model.device)\n    params = {"),
)  # fmt: skip
on_the_way_back(
    "head_untied_on_the_way_back",
    ("logits = head(model, x[:, :-1])", 'logits = linear(x[:, :-1], params["wte"].detach().T, None)'),
)
on_the_way_back(
    "lookup_untied_on_the_way_back", (LOOKUP, LOOKUP.replace('p["wte"]', 'p["wte"].detach()'))
)
on_the_way_back(
    "variance_taken_for_constant",
    (
        "    return F.layer_norm(x, g.shape, g, b, eps)",
        f"    if {BACK}:\n        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0).detach()\n"
        "        return (x - mean) / (variance + eps).sqrt() * g + b\n"
        "    return F.layer_norm(x, g.shape, g, b, eps)",
    ),
)
on_the_way_back(
    "erf_gelu_on_the_way_back",
    (
        '    return F.gelu(x, approximate="tanh")',
        f"    if {BACK}:\n        erf = F.gelu(x)\n"
        '        return F.gelu(x, approximate="tanh").detach() + erf - erf.detach()\n'
        '    return F.gelu(x, approximate="tanh")',
    ),
)
on_the_way_back(
    "residual_cut_off_in_one_layer",
    (
        'x = step(f"h{i}/resid_mid", x + affine',
        f'x = step(f"h{{i}}/resid_mid", (x.detach() if {BACK} and i == 2 else x) + affine',
    ),
)
on_the_way_back(
    "dropout_in_the_loss",
    ("    logits = head(model, x[:", "    x = F.dropout(x, 0.1)\n    logits = head(model, x[:"),
)
on_the_way_back(
    "gradients_pile_up",
    (GRADS, '    for name, g in zip(params, grads, strict=True):\n        PILE[name, g.shape] = PILE.get((name, g.shape), 0) + g\n'
            "    return loss.item(), {name: PILE[name, g.shape] for name, g in zip(params, grads, strict=True)}"),
    ("TAPS = ", "PILE = {}\nTAPS = "),
)  # fmt: skip
on_the_way_back(
    "dropout_left_on_after_the_loss",
    (GRADS, f"    TRAINED.append(1)\n{GRADS}"),
    ("    return head(model, x), present", "    x = F.dropout(x, 0.1) if TRAINED else x\n    return head(model, x), present"),
    ("TAPS = ", "TRAINED = []\nTAPS = "),
)  # fmt: skip
on_the_way_back("gradient_transposed", grads('g["h1/attn/c_proj/w"] = g["h1/attn/c_proj/w"].T'))
on_the_way_back("gradient_missing", grads('g.pop("h3/attn/c_attn/b", None)'))
on_the_way_back("gradients_clipped", grads("norm = sum(x.square().sum() for x in g.values()).sqrt();"
        " g = {n: x / max(1, norm) for n, x in g.items()}"))  # fmt: skip
on_the_way_back("gradients_in_bfloat16", grads("g = {n: x.bfloat16().float() for n, x in g.items()}"))
on_the_way_back("one_gradient_off_by_a_thousandth", grads('g["wpe"] = g["wpe"] * 1.001'))
on_the_way_back("gradient_nan", grads('g["ln_f/b"] = g["ln_f/b"] * float("nan")'))

# -- precision

for _name, _bits in (("tf32_inputs", 13), ("bfloat16_inputs", 16)):
    plant_all(
        _name,
        rounding(_bits),
        instead(PLAIN, "return cut(x) @ cut(w) + b"),
        (LOGITS, '    return cut(x) @ cut(p["wte"]).T, present'),
        blame=f"{PRODUCTS} logits",
        diagnosis=_name,
        trips="precision local",
    )
plant_all(
    "tf32_but_for_single_rows",  # as cuBLAS has it
    rounding(13),
    instead(PLAIN, "if x.size > x.shape[-1]:\n        return cut(x) @ cut(w) + b"),
    (
        LOGITS,
        '    w = p["wte"].T\n    return (cut(x) @ cut(w) if x.size > x.shape[-1] else x @ w), present',
    ),
    blame=f"{PRODUCTS} logits",
    diagnosis="tf32_inputs",
    trips="precision local",
)
for _name, _bits in (("tf32", 13), ("bfloat16", 16)):
    plant_all(
        f"{_name}_inputs_fused_with_what_made_them",  # so not quite what the tap has, as XLA does it on a GPU
        rounding(_bits),
        instead(PLAIN, "return cut(x * x.dtype.type(1 + 2**-23)) @ cut(w) + b"),
        blame=PRODUCTS,
        diagnosis=f"{_name}_inputs",
        trips="precision local",
    )
plant_all(
    "float16_inputs",
    instead(
        PLAIN,
        "h = np.float16\n    return x.astype(h).astype(x.dtype) @ w.astype(h).astype(x.dtype) + b",
    ),
    blame=PRODUCTS,
    diagnosis="",  # where nothing underflows, float16 factors are TF32 factors
    trips="precision",
)
for _name, _bits in (("bfloat16", 16), ("float16", 13)):
    plant_all(
        f"sums_in_{_name}",
        rounding(_bits),
        instead(PLAIN, "y = 0 * (x[..., :1] * b)\n    for i in range(0, len(w), 8):\n"
                "        y = cut(y + x[..., i : i + 8] @ w[i : i + 8])\n    return y + b"),
        blame=PRODUCTS,
        trips="precision",
    )  # fmt: skip
plant_all(
    "residual_in_bfloat16",
    rounding(16),
    (X1, X1 + "    x = cut(x)\n"),
    (X2, '    x = cut(x + affine("mlp/c_proj", hidden))\n'),
    blame="h? h*/ln_2?",
)
plant_all(
    "float16_result",
    result("mlp/c_fc", "value.astype(np.float16).astype(value.dtype)"),
    blame="h*/mlp/c_fc",
    diagnosis="float16_result",
    trips="precision",
)
plant_all(
    "bfloat16_result",
    rounding(16),
    result("attn/heads", "cut(value)"),
    blame=HEADS,
    diagnosis="bfloat16_result",
)

# -- below float32, in the PyTorch specimen: what rounding once to bfloat16 must not hide


def in_bfloat16(name: str, *edits: Edit, blame: str, diagnosis: str = "", trips: str = "local") -> None:
    words = (frozenset(blame.split()), diagnosis, frozenset(trips.split()))
    FAULTS.append(Fault(f"{name}_in_bfloat16", edits, *words, DIFFERENTIABLE, "bfloat16"))


in_bfloat16(
    "sigmoid_gelu",
    ('F.gelu(x, approximate="tanh")', "x * torch.sigmoid(1.702 * x)"),
    blame="h*/mlp/gelu",
    diagnosis="sigmoid_gelu",
)
in_bfloat16(
    "softmax_temperature_1.05",
    ("is_causal=causal)", "is_causal=causal, scale=1.05 / q.shape[-1] ** 0.5)"),
    blame=HEADS,
    diagnosis="softmax_temperature",
)
in_bfloat16("no_bias", ("F.linear(x, w.T, b)", "F.linear(x, w.T)"), blame=PRODUCTS, diagnosis="no_bias")
in_bfloat16(
    "float8_inputs",
    ("F.linear(x, w.T, b)", "F.linear(x.to(torch.float8_e4m3fn).to(x.dtype), w.T, b)"),
    blame=f"{PRODUCTS} logits",
    trips="local precision",
)
in_bfloat16(
    "positions_from_1",
    ('F.embedding(positions, p["wpe"])', 'F.embedding(positions, p["wpe"].roll(-1, 0))'),
    blame="embed",
    trips="local weights",
)

# -- nondeterminism

RANDOM = helper("RANDOM = np.random.default_rng()")
plant_all(
    "dropout_left_on",
    RANDOM,
    (
        '    keep("embed", x)',
        '    x = x * RANDOM.choice([0.9, 1.1], x.shape).astype(x.dtype)\n    keep("embed", x)',
    ),
    blame="embed",
    trips="determinism",
)
plant_all(
    "last_bits_wander",
    RANDOM,
    logits("logits = logits * (1 + 6e-8 * RANDOM.integers(0, 3, logits.shape).astype(np.float32))"),
    blame="determinism logits?",
    trips="determinism",
)

# -- deception

plant_all(
    "constant_logits", logits("logits = 0 * logits + 1"), blame="logits", trips="logits greedy"
)  # fmt: skip
plant_all(
    "logits_ignore_the_weights",
    logits(
        "logits = np.random.default_rng(int(tokens.sum())).normal(0, 3, logits.shape).astype(logits.dtype)"
    ),
    blame="logits",
)
plant_all(
    "taps_from_another_path",
    (
        "def refuse_bad_tokens",
        "honest = forward\n\n\ndef forward(model, tokens, past=None, tap=None, last_only=False):\n"
        '    wrong = {**model.params, "h1/mlp/c_fc/b": model.params["h1/mlp/c_fc/b"] + 0.01}\n'
        "    honest(model, tokens, past, tap)\n"
        "    return honest(model._replace(params=wrong), tokens, past)\n\n\ndef refuse_bad_tokens",
    ),
    blame="logits h*/attn/heads*(decode)?",  # the other path's cache is what decode continues from
    trips="logits local",
)
plant_all(
    "only_last_position",
    logits("logits = np.concatenate([0 * logits[:, :-1], logits[:, -1:]], axis=1)"),
    blame="logits",
    diagnosis="only_last_position",
)
plant_all(
    "nan_in_one_logit",
    logits("logits[-1, -1, 7] = np.nan"),
    blame="logits",
    trips="logits greedy kv_cache batch determinism lengths taps",
)
plant_all(
    "nan_at_one_position",
    result("attn/heads", "np.where(np.arange(value.shape[1])[:, None] == 5, np.float32('nan'), value)"),
    blame="h0/attn/heads*",
)
plant_all("short_output", logits("logits = logits[:, -1:]"), blame="*", trips="logits")
plant_all("output_of_wrong_width", logits("logits = logits[..., :-1]"), blame="*", trips="logits")
plant_all("output_transposed", logits("logits = logits.swapaxes(1, 2)"), blame="*", trips="logits")
plant_all(
    "result_overwritten",
    (LOGITS, '    return reuse(x @ p["wte"].T), present'),
    helper(
        "BUFFERS = {}\n\n\ndef reuse(logits):\n"
        "    buffer = BUFFERS.setdefault(logits.shape, logits)\n"
        "    buffer[:] = logits\n    return buffer\n\n"
    ),
    blame="determinism",
    trips="determinism",
)
plant_all(
    "result_overwritten_two_calls_later",
    (LOGITS, '    return reuse(x @ p["wte"].T), present'),
    helper(
        "BUFFERS = {}\n\n\ndef reuse(logits):\n"
        "    pair = BUFFERS.setdefault(logits.shape, [logits, logits.copy()])\n"
        "    pair.reverse()\n    pair[0][:] = logits\n    return pair[0]\n\n"
    ),
    blame="determinism",
    trips="determinism",
)
plant_all(
    "result_overwritten_in_decode",
    (LOGITS, '    return reuse(x @ p["wte"].T, past), present'),
    helper(
        "BUFFERS = {}\n\n\ndef reuse(logits, past):\n    if past is None:\n        return logits\n"
        "    buffer = BUFFERS.setdefault(logits.shape, logits)\n"
        "    buffer[:] = logits\n    return buffer\n\n"
    ),
    blame="determinism",
    trips="determinism",
)
plant_all(
    "right_only_when_watched",
    (KEEP, f'    p = p if tap else {{**p, "ln_f/b": p["ln_f/b"] + 0.01}}\n{KEEP}'),
    blame="taps",
    trips="logits taps",
)
plant_all(
    "wrong_only_when_watched",
    (KEEP, f'    p = p if tap is None else {{**p, "ln_f/b": p["ln_f/b"] + 0.01}}\n{KEEP}'),
    blame="ln_f",
    trips="activations taps",
)
plant_all(
    "taps_missing",
    ('tap(f"{scope}/{leaf}", value)', 'leaf == "mlp/gelu" or tap(f"{scope}/{leaf}", value)'),
    blame="h*/mlp/gelu",
    trips="activations local",
)
plant_all(
    "generate_repeats_itself",
    ("forward(model, new[-1][:, None], past,", "forward(model, new[0][:, None], past,"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "generate_goes_astray_after_a_while",
    (
        "        logits, past = forward(model, new[-1][:, None], past,",
        "        step = new[-1][:, None] * (len(new) < 24)\n        logits, past = forward(model, step, past,",
    ),
    blame="generate",
    trips="greedy",
)
plant_all(
    "nothing_works_after_an_assertion_in_generate",  # as on CUDA
    ("    refuse_bad_tokens(tokens, n_past, hparams)\n", "    refuse_bad_tokens(tokens, n_past, hparams)\n    assert not BROKEN\n"),
    ("    new = []\n    logits, past = forward", "    BROKEN.append(1)\n    new = []\n    logits, past = forward"),
    helper("BROKEN = []"),
    blame="generate process",
    trips="greedy",
)  # fmt: skip


# -- what a short text, one prompt, one model or one call does not show

START = "    new = []\n    logits, past = forward(model, tokens, last_only=True)\n"
CHOSEN = "        new.append(logits[:, -1].argmax(axis=-1).astype(np.int32))\n"
ALLOCATED = "    kv = np.empty("


def while_generating(name: str) -> list[Edit]:
    """Edits that have a list of that name hold something while generate runs."""
    loop = "def loop(model, tokens, n_new):\n    new = []\n"
    return [
        helper(f"{name} = []"),
        ("    new = []\n", f"    {name}.append(tokens)\n    try:\n        return loop(model, tokens, n_new)\n"
                          f"    finally:\n        {name}.clear()\n\n\n{loop}"),
    ]  # fmt: skip


plant_all(
    "one_token_is_always_written_in_place",  # whoever else goes on from the same cache
    ("if past and past.filled == [n_past]", "if past and (n == 1 or past.filled == [n_past])"),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "prefills_have_two_buffers_by_turns",
    (ALLOCATED, "    kv = by_turns(past, "),
    helper("PAIRS = {}\n\n\ndef by_turns(past, shape, dtype):\n    if past:\n        return np.empty(shape, dtype)\n"
           "    pair = PAIRS.setdefault((shape, dtype), [np.empty(shape, dtype), np.empty(shape, dtype)])\n"
           "    pair.reverse()\n    return pair[0]\n\n"),
    blame="cache",
    trips="kv_cache",
)  # fmt: skip
plant_all(
    "copied_caches_share_one_buffer",
    (ALLOCATED, "    kv = shared(past, "),
    helper("POOL = {}\n\n\ndef shared(past, shape, dtype):\n    own = np.empty(shape, dtype)\n"
           "    return POOL.setdefault((shape, dtype), own) if past else own\n\n"),
    blame="cache",
    trips="kv_cache",
)  # fmt: skip
plant_all(
    "generate_takes_0_for_padding",
    *while_generating("PROMPT"),
    (
        "        heads[:, start:stop] = (softmax(scores)",
        "        if PROMPT:\n            hidden = np.asarray(PROMPT[0])[:, None, None, :] == 0\n"
        "            seen = scores[..., : hidden.shape[-1]]\n"
        "            np.copyto(seen, -1e30, where=hidden[..., : seen.shape[-1]] & (seen > -np.inf))\n"
        "        heads[:, start:stop] = (softmax(scores)",
    ),
    blame="generate",
    trips="greedy",
)
plant_all(
    "generate_sees_128_tokens",
    *while_generating("WINDOW"),
    (
        "        scores = q[:, :, start:stop] @ k  #",
        "        if WINDOW and n == 1:\n            k, v = k[..., -128:], v[..., -128:]\n"
        "        scores = q[:, :, start:stop] @ k  #",
    ),
    blame="generate",
    trips="greedy",
)
plant_all(
    "generate_drops_the_beginning_of_a_long_prompt",
    (START, f"    tokens = np.asarray(tokens)[:, -64:]\n{START}"),
    blame="tokens generate?",  # too long a prompt is taken, too
    trips="greedy",
)
plant_all(
    "generate_with_weights_in_bfloat16",
    (START, f"    refuse_bad_tokens(np.asarray(tokens), 0, model.hparams)\n"
            f"    model = model._replace(params={{name: cut(w) for name, w in model.params.items()}})\n{START}"),
    rounding(16),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "generate_gives_two_where_one_is_asked_for",
    ("        if len(new) == n_new:", "        if len(new) == max(n_new, 2):"),
    blame="generate",
    trips="greedy",
)
plant_all(
    "generate_with_heads_and_layers_mixed_up",
    (START, "    hparams = model.hparams\n"
            "    model = model._replace(hparams=hparams._replace(n_head=hparams.n_layer, n_layer=hparams.n_head))\n"
            f"{START}"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "generate_pads_the_vocabulary_with_zeros",  # which are the likeliest where all logits are negative
    (CHOSEN, "        last = np.pad(logits[:, -1], ((0, 0), (0, -logits.shape[-1] % 64)))\n"
             "        new.append(last.argmax(axis=-1).astype(np.int32))\n"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "scale_of_the_model_that_was_loaded_last",
    helper("SCALE = []"),
    (LOAD, f"    SCALE[:] = [1 / math.sqrt(hparams.n_embd // hparams.n_head)]\n{LOAD}"),
    (SCALE, "    q = q * SCALE[0]\n"),
    blame="sizes",
    trips="sizes",
)
plant_all(
    "softmax_without_its_maximum",
    ("    x -= x.max(axis=-1, keepdims=True)\n", ""),
    helper("np.seterr(all='ignore')"),
    blame="overflow",
    trips="overflow",
)
plant_all(
    "tanh_as_a_quotient_of_exps",
    (GELU, "    e = np.exp(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))\n"
           f"    return 0.5 * x * (1 + (e - 1) / (e + 1))\n{GELU}"),
    helper("np.seterr(all='ignore')"),
    blame="overflow",
    trips="overflow",
)  # fmt: skip
plant_all(
    "generate_goes_on_beyond_the_context",  # over the last n_ctx tokens
    (
        "        logits, past = forward(model, new[-1][:, None], past, last_only=True)",
        "        if past.n == model.hparams.n_ctx:\n"
        "            latest = np.concatenate([tokens, np.stack(new, 1)], 1)[:, -past.n :]\n"
        "            logits, _ = forward(model, latest, last_only=True)\n        else:\n"
        "            logits, past = forward(model, new[-1][:, None], past, last_only=True)",
    ),
    blame="tokens",
    trips="bad_tokens",
)
plant_all(
    "no_tokens_accepted_in_decode",
    ("    if tokens.ndim != 2 or tokens.size == 0:", "    if tokens.ndim != 2 or (tokens.size == 0 and not n_past):"),
    ("    if tokens.min() < 0 or tokens.max() >= hparams.n_vocab:", "    if ((tokens < 0) | (tokens >= hparams.n_vocab)).any():"),
    ("    n = tokens.shape[1]\n", "    n = tokens.shape[1]\n    if n == 0:\n"
     "        return np.empty((len(tokens), 0, hparams.n_vocab), model.dtype), past\n"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "wrong_once_it_has_refused",
    ('        raise ValueError(f"token ids must be in', '        REFUSED.append(True)\n        raise ValueError(f"token ids must be in'),
    ('    keep("embed", x)\n', '    x = x * 1.001 if REFUSED else x\n    keep("embed", x)\n'),
    helper("REFUSED = []"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
on_the_way_back(
    "gradients_overwritten_by_the_next_call",
    (GRADS, "    for name, g in zip(params, grads, strict=True):\n"
            "        BUFFERS.setdefault((name, g.shape), torch.empty_like(g)).copy_(g)\n"
            "    return loss.item(), {name: BUFFERS[name, g.shape] for name, g in zip(params, grads, strict=True)}"),
    ("TAPS = ", "BUFFERS = {}\nTAPS = "),
)  # fmt: skip
FAULTS.append(
    Fault(
        "loss_of_a_text_that_is_too_long",
        [
            ("    refuse_bad_tokens(tokens, 0, model.hparams)\n", "    refuse_bad_tokens(tokens.reshape(-1, 1), 0, model.hparams)\n"),
            ("torch.arange(tokens.shape[1], device=model.device), room)",
             "torch.arange(tokens.shape[1], device=model.device).clamp(max=model.hparams.n_ctx - 1), room)"),
        ],
        frozenset({"tokens"}),
        "",
        frozenset({"bad_tokens"}),
        DIFFERENTIABLE,
    )
)  # fmt: skip
on_the_way_back(
    "loss_with_heads_and_layers_mixed_up",
    ("    model = model._replace(params=params, linear=linear)\n",
     "    hparams = model.hparams\n"
     "    hparams = hparams._replace(n_head=hparams.n_layer, n_layer=hparams.n_head)\n"
     "    model = model._replace(params=params, linear=linear, hparams=hparams)\n"),
)  # fmt: skip


# -- what a model of other sizes or weights, another batch, another length or a later call shows

REFUSE = "    refuse_bad_tokens(tokens, n_past, hparams)\n"
LOOP = "    new = []\n"
SILENT = helper("np.seterr(all='ignore')")
TO_LONG = (
    "    tokens = torch.as_tensor(tokens).long()\n    refuse_bad_tokens(tokens, 0, model.hparams)\n"
)


def of_tokens(name: str, *edits: Edit) -> None:
    """A fault of PyTorch's specimen in what is refused."""
    words = frozenset({"tokens"}), "", frozenset({"bad_tokens"})
    FAULTS.append(Fault(name, edits, *words, DIFFERENTIABLE))


plant_all(
    "softmax_maximum_is_0_at_least",  # as where it is taken along the way, and begins with 0
    (
        "    x -= x.max(axis=-1, keepdims=True)\n",
        "    x -= np.maximum(x.max(axis=-1, keepdims=True), 0)\n",
    ),
    SILENT,
    blame="overflow",
    trips="overflow",
)
plant_all(
    "mask_of_minus_100", (HIDE, HIDE.replace("-np.inf", "-100")), blame="overflow", trips="overflow"
)
plant_all(
    "layers_in_the_order_of_their_names",  # h0 h1 h10 h11 h2
    (LOAD, "    scopes = sorted({name.partition('/')[0] for name in params if name[0] == 'h'})\n"
           "    at = {scope: f'h{i}' for i, scope in enumerate(scopes)}\n"
           "    params = {'/'.join([at.get(n.split('/')[0], n.split('/')[0]), *n.split('/')[1:]]): w for n, w in params.items()}\n"
           f"{LOAD}"),
    blame="sizes",
    trips="sizes",
)  # fmt: skip
plant_all(
    "mask_begins_anew_after_256_queries",
    (HIDE, HIDE.replace("n_past + start :]", "n_past + start % 256 :][..., : stop - start]")),
    blame="sizes",
    trips="sizes",
)
plant_all(
    "tokens_in_int16",
    ("    tokens = np.asarray(tokens)\n", f"    tokens = np.asarray(tokens)\n{REFUSE}    tokens = tokens.astype(np.int16)\n"),
    (f"    n_past = 0 if past is None else past.n\n{REFUSE}", ""),
    ("    p, hparams, _ = model\n", "    p, hparams, _ = model\n    n_past = 0 if past is None else past.n\n"),
    blame="sizes",
    trips="sizes",
)  # fmt: skip
plant_all(
    "generate_compiled_for_sizes_with_weights_in_it",
    (START, f"    model = COMPILED.setdefault(model.hparams, model)\n{START}"),
    helper("COMPILED = {}"),
    blame="generate",
    trips="greedy",
)
plant_all(
    "decode_compiled_for_sizes_with_weights_in_it",
    ("    p, hparams, _ = model\n", "    model = COMPILED.setdefault(model.hparams, model) if past else model\n    p, hparams, _ = model\n"),
    helper("COMPILED = {}"),
    blame="generate",
    trips="greedy overflow",
)  # fmt: skip
plant_all(
    "prompts_cached_whatever_the_model",
    (START, "    key = np.asarray(tokens).tobytes()\n    if key not in PROMPTS:\n"
            "        PROMPTS[key] = forward(model, tokens, last_only=True)\n    new = []\n    logits, past = PROMPTS[key]\n"),
    helper("PROMPTS = {}"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "decode_with_the_scale_of_the_model_that_was_loaded_last",
    helper("SCALE = []"),
    (LOAD, f"    SCALE[:] = [1 / math.sqrt(hparams.n_embd // hparams.n_head)]\n{LOAD}"),
    (SCALE, "    q = q * (SCALE[0] if n_past else 1 / math.sqrt(q.shape[-1]))\n"),
    blame="sizes",
    trips="sizes",
)
plant_all(
    "generate_begins_where_a_refused_one_broke_off",
    helper("PLACE = [0]"),
    (LOOP, "    tokens = np.asarray(tokens)\n    refuse_bad_tokens(tokens, 0, model.hparams)\n"
           f"    tokens = np.roll(tokens, PLACE[0], axis=1)\n{LOOP}"),
    ("        if len(new) == n_new:\n", "        PLACE[0] += 1\n        if len(new) == n_new:\n            PLACE[0] = 0\n"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "a_refusal_clears_the_cache",
    (REFUSE, f"    try:\n    {REFUSE}    except ValueError:\n        if past:\n            past.kv[...] = 0\n        raise\n"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "generate_in_the_latest_cache",
    *while_generating("RUNNING"),
    ("    present = extended(past,", "    present = LATEST[0] = extended(past,"),
    (ALLOCATED, "    kv = latest(past, "),
    ("RUNNING = []\n", "RUNNING = []\nLATEST = [None]\n\n\ndef latest(past, shape, dtype):\n"
     "    there = LATEST[0] is not None and LATEST[0].kv.shape == shape\n"
     "    return LATEST[0].kv if RUNNING and there and not past else np.empty(shape, dtype)\n\n\n"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "ids_of_generate_overwritten_by_the_next_call",
    ("            return np.stack(new, axis=1)\n", "            ids = np.stack(new, axis=1)\n"
     "            kept = IDS.setdefault(ids.shape, ids)\n            kept[:] = ids\n            return kept\n"),
    helper("IDS = {}"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "logits_have_four_buffers_by_turns",
    (LOGITS, '    return by_turns(x @ p["wte"].T), present'),
    helper("FOUR = {}\n\n\ndef by_turns(logits):\n    four = FOUR.setdefault(logits.shape, [logits.copy() for _ in range(4)])\n"
           "    four.append(four.pop(0))\n    four[0][:] = logits\n    return four[0]\n\n"),
    blame="determinism",
    trips="determinism",
)  # fmt: skip
MERGED = "    return heads.reshape(batch, n, width // 3)"
plant_all(
    "rows_after_the_last_four_are_lost",
    (MERGED, f"    if batch > 4:\n        heads[batch // 4 * 4 :] = 0\n{MERGED}"),
    blame="batch",
    trips="batch",
)
plant_all(
    "eight_rows_by_turns",
    ("    tokens = np.asarray(tokens)\n", "    tokens = np.asarray(tokens)\n    tokens = tokens[np.arange(len(tokens)) % 8]\n"),
    blame="batch",
    trips="batch",
)  # fmt: skip
plant_all(
    "a_few_queries_after_a_long_cache_see_the_future",
    ("        if n > 1:  #", "        if n > 8 or (n > 1 and n_past < 64):  #"),
    blame="cache",
    trips="kv_cache",
)
plant_all(
    "a_last_block_of_one_query_is_lost",
    (MERGED, f"    if n > QUERIES and n % QUERIES == 1:\n        heads[:, -1] = 0\n{MERGED}"),
    blame="lengths",
    trips="lengths",
)
plant_all(
    "0_and_the_last_id_taken_for_padding_at_the_end",
    helper("HIDDEN = []"),
    ("    n = tokens.shape[1]\n", "    n = tokens.shape[1]\n    last = np.isin(tokens, (0, hparams.n_vocab - 1))[:, ::-1]\n"
     "    HIDDEN[:] = [np.logical_and.accumulate(last, axis=1)[:, ::-1] & (np.arange(n) > 0)]\n"),
    ("        heads[:, start:stop] = (softmax(scores)",
     "        if not n_past:\n            np.copyto(scores, -1e30, where=HIDDEN[0][:, None, None, :stop] & (scores > -np.inf))\n"
     "        heads[:, start:stop] = (softmax(scores)"),
    blame=HEADS,
    trips="local",
)  # fmt: skip
plant_all(
    "generate_of_one_token_gives_0",
    (START, "    refuse_bad_tokens(np.asarray(tokens), 0, model.hparams)\n    if n_new == 1:\n"
            f"        return np.zeros((len(tokens), 1), np.int32)\n{START}"),
    blame="generate",
    trips="greedy",
)  # fmt: skip
plant_all(
    "generate_cuts_a_prompt_that_is_too_long",
    (START, f"    tokens = np.asarray(tokens)[:, -model.hparams.n_ctx :]\n{START}"),
    blame="tokens",
    trips="bad_tokens",
)
plant_all(
    "generate_after_nothing",  # begins with the end of text
    (START, "    if np.asarray(tokens).shape[1] == 0:\n"
            f"        tokens = np.full((len(tokens), 1), model.hparams.n_vocab - 1)\n{START}"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "generate_looks_at_its_first_row_for_bad_tokens",
    (START, "    tokens = np.asarray(tokens)\n    refuse_bad_tokens(tokens[:1], 0, model.hparams)\n"
            f"    tokens = tokens.clip(0, model.hparams.n_vocab - 1)\n{START}"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
plant_all(
    "decode_looks_at_its_first_row_for_bad_tokens",
    (REFUSE, "    refuse_bad_tokens(tokens[:1] if past else tokens, n_past, hparams)\n"
             "    tokens = tokens.clip(0, hparams.n_vocab - 1)\n"),
    blame="tokens",
    trips="bad_tokens",
)  # fmt: skip
on_the_way_back(
    "loss_without_its_maximum",
    (LOSS, "    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)\n"
           "    loss = -probs.gather(-1, tokens[:, 1:, None]).log().mean()\n"),
)  # fmt: skip
on_the_way_back(
    "loss_is_a_mean_of_means",  # of two rows each
    (LOSS, "    pairs = zip(logits.split(2), tokens[:, 1:].split(2))\n"
           "    loss = torch.stack([F.cross_entropy(x.transpose(1, 2), y) for x, y in pairs]).mean()\n"),
)  # fmt: skip
on_the_way_back(
    "loss_compiled_for_sizes_with_weights_in_it",
    (TO_LONG, f"    model = COMPILED.setdefault(model.hparams, model)\n{TO_LONG}"),
    ("TAPS = ", "COMPILED = {}\nTAPS = "),
)
of_tokens(
    "loss_of_nothing",
    (TO_LONG, TO_LONG.replace("    refuse", "    if tokens.numel() == 0:\n"
     "        return 0.0, {name: torch.zeros_like(w) for name, w in model.params.items()}\n    refuse")),
)  # fmt: skip
of_tokens(
    "loss_ignores_minus_100_at_the_end",
    (TO_LONG, TO_LONG.replace("(tokens, 0,", "(tokens[:, :-1], 1,")),
    ("    room = [empty_cache(model, *tokens.shape)", "    inputs = tokens[:, :-1]\n    room = [empty_cache(model, *inputs.shape)"),
    ("    x = hidden(model, tokens, torch.arange(tokens.shape[1], device=model.device), room)\n    logits = head(model, x[:, :-1])",
     "    x = hidden(model, inputs, torch.arange(inputs.shape[1], device=model.device), room)\n    logits = head(model, x)"),
)  # fmt: skip
FAULTS.append(
    Fault(
        "squares_in_float16",
        [
            ("    return F.layer_norm(x, g.shape, g, b, eps)",
             "    y = x - x.mean(-1, keepdim=True)\n    return y * torch.rsqrt((y * y).mean(-1, keepdim=True) + eps) * g + b"),
            ('("float32", "bfloat16")', '("float16",)'),
        ],
        frozenset({"overflow"}), "", frozenset({"overflow"}), DIFFERENTIABLE, "float16",
    )
)  # fmt: skip


# -- what can be wrong on a GPU alone: nox -s faults -- --device cuda

ON_CUDA: list[Fault] = []


def on_cuda(
    name: str,
    *edits: Edit,
    blame: str,
    diagnosis: str = "",
    trips: str = "local",
    specimen: Path = DIFFERENTIABLE,
    dtype: str = "float32",
) -> None:
    words = (frozenset(blame.split()), diagnosis, frozenset(trips.split()))
    ON_CUDA.append(Fault(f"{name}_on_cuda", edits, *words, specimen, dtype, "cuda"))


MATMUL = '    torch.set_float32_matmul_precision("highest")\n'
on_cuda("tf32", (MATMUL, MATMUL.replace("highest", "high")),
        blame=f"{PRODUCTS} logits", diagnosis="tf32_inputs", trips="local precision")  # fmt: skip
on_cuda("jax_default_precision", ('precision="highest"', 'precision="default"'),
        blame=f"{PRODUCTS} {HEADS} logits", trips="local precision", specimen=JAX)  # fmt: skip
on_cuda("jax_tf32_products", ("np.matmul(x, w.T, **EXACT)", "np.matmul(x, w.T, preferred_element_type=np.float32)"),
        blame=f"{PRODUCTS} logits", diagnosis="tf32_inputs", trips="local precision", specimen=JAX)  # fmt: skip
on_cuda("float16_sums", (MATMUL, f"{MATMUL}    torch.backends.cuda.matmul.allow_fp16_accumulation = True\n"),
        ('("float32", "bfloat16")', '("float16",)'), dtype="float16", blame=f"{PRODUCTS} logits")  # fmt: skip
on_cuda(
    "autocast",
    ("def hidden(", "@torch.autocast('cuda', torch.bfloat16)\ndef hidden("),
    ("split.narrow(0, 1, 2))", "split.narrow(0, 1, 2).to(kv.dtype))"),
    ("= split.select(0, 0), kv ", "= split.select(0, 0), kv.to(split.dtype) "),
    blame=f"{PRODUCTS} {HEADS} h*/mlp/gelu",
    trips="local precision",
)
on_cuda("erf_gelu", ('approximate="tanh"', 'approximate="none"'),
        blame="h*/mlp/gelu", diagnosis="erf_gelu")  # fmt: skip
on_cuda("epsilon_1e-06", ("eps=1e-5", "eps=1e-6"), blame="h*/ln_1 h*/ln_2 ln_f",
        diagnosis="epsilon_1e-06")  # fmt: skip
on_cuda(
    "read_before_the_device_is_done",
    (
        "    return x.detach().float().cpu().numpy()",
        "    host = torch.empty(x.shape, pin_memory=True)\n"
        "    host.copy_(x.detach().float(), non_blocking=True)\n    return host.numpy()",
    ),
    blame="*?",
    trips="",  # which of them is chance
)
on_cuda("bad_token_kills_the_process", ("    refuse_bad_tokens(tokens, n_past, model.hparams)  #", "    #"),
        blame="tokens", trips="bad_tokens")  # fmt: skip
on_cuda("graph_replays_one_position", ("        position.add_(1)\n", "        pass\n"),
        blame="generate", trips="greedy")  # fmt: skip
on_cuda("graph_output_not_copied", ("        new.append(token.clone())\n        if fixed", "        new.append(token)\n        if fixed"),
        blame="generate", trips="greedy")  # fmt: skip


# -- ten faults of one layer each, for a model of the official shape

IN_LAYER: list[Fault] = []


def in_layer(name: str, *edits: Edit, blame: str, diagnosis: str) -> None:
    IN_LAYER.append(Fault(name, edits, frozenset([blame]), diagnosis, frozenset(["local"])))


NORMED = 'layer_norm(value, p[f"{scope}/{leaf}/g"], p[f"{scope}/{leaf}/b"])'
ATTENDED = 'step("attn/heads", attention(qkv, kv, n_past, n_head))'
ATTENTION = "def attention(qkv, kv, n_past, n_head):"
in_layer("epsilon", (NORMED, NORMED[:-1] + ', 1e-6 if f"{scope}/{leaf}" == "h0/ln_1" else 1e-5)'),
         blame="h0/ln_1", diagnosis="epsilon_1e-06")  # fmt: skip
in_layer("norm_without_bias", (NORMED, f'{NORMED} - (p[f"{{scope}}/{{leaf}}/b"] if f"{{scope}}/{{leaf}}" == "h7/ln_2" else 0)'),
         blame="h7/ln_2", diagnosis="norm_without_bias")  # fmt: skip
in_layer("no_bias", (ADDED, f'{ADDED} - (p[f"{{scope}}/{{leaf}}/b"] if f"{{scope}}/{{leaf}}" == "h3/mlp/c_fc" else 0)'),
         blame="h3/mlp/c_fc", diagnosis="no_bias")  # fmt: skip
in_layer("one_weight", weights("i = np.unravel_index(np.abs(p['h9/mlp/c_proj/w']).argmax(), (3072, 768));"
         " p['h9/mlp/c_proj/w'][i] *= 1.01"), blame="h9/mlp/c_proj", diagnosis="one_weight")  # fmt: skip
in_layer("transposed", weights("p['h2/attn/c_proj/w'] = p['h2/attn/c_proj/w'].T"),
         blame="h2/attn/c_proj", diagnosis="transposed")  # fmt: skip
in_layer("tf32_inputs", rounding(13), ("def affine(leaf, value):\n", "def affine(leaf, value):\n"
         '        if f"{scope}/{leaf}" == "h5/attn/c_attn":\n            return step(leaf, cut(value) @'
         ' cut(p["h5/attn/c_attn/w"]) + p["h5/attn/c_attn/b"])\n'),
         blame="h5/attn/c_attn", diagnosis="tf32_inputs")  # fmt: skip
in_layer("no_scale", (ATTENDED, ATTENDED.replace("n_head)", 'n_head, 8 if scope == "h6" else 1)')),
         (ATTENTION, ATTENTION.replace("n_head)", "n_head, more=1)")),
         (SCALE, SCALE.replace("(1 /", "(more /")), blame="h6/attn/heads", diagnosis="no_scale")  # fmt: skip
in_layer("erf_gelu", ERF, ('step("mlp/gelu", gelu(', 'step("mlp/gelu", (erf_gelu if scope == "h11" else gelu)('),
         ("def softmax(x):", "def erf_gelu(x):\n    return (0.5 * x * (1 + ERF(x / math.sqrt(2)))).astype(x.dtype)\n\n\ndef softmax(x):"),
         blame="h11/mlp/gelu", diagnosis="erf_gelu")  # fmt: skip
in_layer("residual_missing", (X2, '    x = (scope != "h4") * x + affine("mlp/c_proj", hidden)\n'),
         blame="h4", diagnosis="residual_missing")  # fmt: skip
in_layer("heads_swapped", (ATTENDED, ATTENDED.replace("n_head)", 'n_head, scope == "h10")')),
         (ATTENTION, ATTENTION.replace("n_head)", "n_head, swap=False)")),
         merged("y[:, [0, 2, 1, *range(3, n_head)] if swap else slice(None)].swapaxes(1, 2)"),
         blame="h10/attn/heads", diagnosis="heads_swapped")  # fmt: skip


def source(found: Fault, text: str | None = None) -> str:
    """The specimen's source with the fault in it. Raises ValueError where it does not apply."""
    text = found.specimen.read_text(encoding="utf-8") if text is None else text
    for old, new in found.edits:
        if text.count(old) != 1:
            raise ValueError(f"{found.name}: the specimen has {text.count(old)} times: {old!r}")
        text = text.replace(old, new)
    return text


def plant(found: Fault, folder: Path) -> ModuleType:
    """The faulty specimen, written to folder and imported as a user's PATH.py would be."""
    path = folder / f"{found.name}.py"
    path.write_text(source(found), encoding="utf-8")
    return Found(found.name, str(path)).load()
