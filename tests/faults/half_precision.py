"""Mistakes that rounding once to 16 bits must not hide: edits of the PyTorch specimen."""

from .attention import HEADS
from .edits import TORCH, Edit
from .products import PRODUCTS
from .shelf import put_edits

PRODUCT = "F.linear(x, w.T, b)"


def in_bfloat16(name: str, *edits: Edit, blame: str, diagnosis: str = "", trips: str = "local") -> None:
    words = {"blame": blame, "diagnosis": diagnosis, "trips": trips}
    put_edits(f"{name}_in_bfloat16", TORCH, *edits, **words, dtype="bfloat16")


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
in_bfloat16("no_bias", (PRODUCT, "F.linear(x, w.T)"), blame=PRODUCTS, diagnosis="no_bias")
in_bfloat16(
    "float8_inputs",
    (PRODUCT, "F.linear(x.to(torch.float8_e4m3fn).to(x.dtype), w.T, b)"),
    blame=f"{PRODUCTS} logits",
    trips="local precision",
)
in_bfloat16(
    "positions_from_1",
    ('F.embedding(positions, p["wpe"])', 'F.embedding(positions, p["wpe"].roll(-1, 0))'),
    blame="embed",
    trips="local weights",
)
put_edits(
    "squares_in_float16",
    TORCH,
    (
        "    return F.layer_norm(x, g.shape, g, b, eps)",
        "    y = x - x.mean(-1, keepdim=True)\n"
        "    return y * torch.rsqrt((y * y).mean(-1, keepdim=True) + eps) * g + b",
    ),
    ('("float32", "bfloat16")', '("float16",)'),
    blame="overflow",
    trips="overflow",
    dtype="float16",
)
