"""Mistakes that only some lengths show: at the ends of query blocks, and at the end of the context."""

import numpy as np

from .plain import Plain, causal
from .shelf import fault


@fault("n_ctx_off_by_one", replaces="refuse", blame="*", trips="lengths logits")
def n_ctx_off_by_one(tokens, n_past, hparams):
    Plain.refuse(tokens, n_past, hparams._replace(n_ctx=hparams.n_ctx - 1))


@fault("a_last_block_of_one_query_is_lost", alters="attention", blame="lengths", trips="lengths")
def last_block_lost(heads):
    """As in code that takes queries 64 at a time and drops a last block of one."""
    n = heads.shape[1]
    if n > 64 and n % 64 == 1:
        heads[:, -1] = 0
    return heads


@fault("mask_begins_anew_after_256_queries", replaces="mask", blame="sizes", trips="sizes")
def mask_begins_anew(scores, at):
    visible = causal(scores)
    return np.where(visible[np.arange(len(visible)) % 256], scores, -np.inf)
