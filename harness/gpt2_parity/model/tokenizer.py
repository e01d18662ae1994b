"""The byte-level BPE of a checkpoint, run by tiktoken.

Its files are vocab.bpe and encoder.json, which Hugging Face calls merges.txt and vocab.json.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from gpt2_parity.contract.architecture import HParams
from gpt2_parity.contract.interface import CannotJudge
from gpt2_parity.files import strict_json
from gpt2_parity.model import checkpoint, huggingface

END_OF_TEXT = "<|endoftext|>"
# How GPT-2 splits text before merging (Radford et al. 2019; OpenAI's encoder.py).
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


class Tokenizer:
    """Turns text into token ids and back, with the tokenizer files of one checkpoint."""

    def __init__(self, directory: Path, n_vocab: int):
        """Raises CannotJudge if the files are missing, disagree, or do not have n_vocab entries.

        Those of Hugging Face may have fewer: a vocabulary may be padded, or have tokens added by another
        file. Such ids have no text here.
        """
        import tiktoken  # a verdict needs it only in the worker
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        openai = not huggingface.is_one(directory)
        vocab = directory / ("vocab.bpe" if openai else huggingface.MERGES)
        encoder = directory / ("encoder.json" if openai else huggingface.VOCABULARY)
        # tiktoken caches by path and would not notice a changed file.
        os.environ["TIKTOKEN_CACHE_DIR"] = ""
        try:
            ids = strict_json.read(encoder)
            if wrong := [name for name, i in ids.items() if type(i) is not int]:
                raise ValueError(f"the id of {wrong[0]!r} is not an integer")
            ranks = data_gym_to_mergeable_bpe_ranks(str(vocab), str(encoder))
        except Exception as error:  # assertion, key, JSON, decode and I/O errors
            raise CannotJudge(
                f"{vocab} and {encoder}: not a consistent byte-level BPE ({error!r})"
            ) from error
        if len(ids) > n_vocab or (openai and len(ids) < n_vocab):
            raise CannotJudge(f"{encoder}: {len(ids)} entries, hparams say {n_vocab}")
        if ids.get(END_OF_TEXT) != len(ranks):
            last = f"{END_OF_TEXT} has id {ids.get(END_OF_TEXT)}, expected the last, {len(ranks)}"
            raise CannotJudge(f"{encoder}: {last}")
        self.end_of_text = len(ranks)
        self._bpe = tiktoken.Encoding(
            "gpt2-local",
            pat_str=PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
        )

    @property
    def n_vocab(self) -> int:
        return self._bpe.n_vocab

    def encode(self, text: str) -> list[int]:
        """Token ids of text. "<|endoftext|>" in it is plain text, never the special token."""
        return self._bpe.encode_ordinary(text)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Token ids of any bytes. Each byte that is not UTF-8 becomes one token."""
        text = data.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for piece in re.split("([\udc80-\udcff])", text):
            if len(piece) == 1 and "\udc80" <= piece <= "\udcff":
                ids.append(self._bpe.encode_single_token(piece.encode("utf-8", "surrogateescape")))
            else:
                ids += self.encode(piece)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids. What is not UTF-8, or has no text, becomes replacement characters."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The exact bytes of token ids; those of U+FFFD for an id without text."""
        known = self._bpe.decode_single_token_bytes
        return b"".join(known(i) if i < self.n_vocab else "\ufffd".encode() for i in ids)


def tokenizer_of(directory: Path, hparams: HParams) -> Tokenizer | None:
    """The checkpoint's tokenizer, or None for a model without one, such as a generated one."""
    if not {"vocab.bpe", huggingface.MERGES} & set(checkpoint.files(directory)):
        return None
    return Tokenizer(directory, hparams.n_vocab)
