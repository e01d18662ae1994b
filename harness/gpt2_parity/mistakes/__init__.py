"""Known mistakes, one file for each kind of operation, and how an error is matched with them.

A mistake computes the result that an operation gives if it is done wrongly in one named way.
May import: reference, contract.
"""

from gpt2_parity.mistakes import (  # isort: skip  (the order in which they are tried)
    embedding,
    equivalent,
    layer_norm,
    products,
    attention,
    gelu,
    additions,
    any_operation,
)

__all__ = [
    "additions",
    "any_operation",
    "attention",
    "embedding",
    "equivalent",
    "gelu",
    "layer_norm",
    "products",
]
