"""A model on disk: checkpoints of two formats, generated weights, tokenizer files, downloads.

May import: files, contract.
"""
