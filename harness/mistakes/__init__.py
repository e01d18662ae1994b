"""Known mistakes, one file for each kind of operation; importing this fills the shelf, in order."""

from harness.mistakes import (  # isort: skip  (the order is that of the shelf)
    embedding,
    layer_norm,
    products,
    attention,
    gelu,
    additions,
    any_operation,
)

__all__ = ["additions", "any_operation", "attention", "embedding", "gelu", "layer_norm", "products"]
