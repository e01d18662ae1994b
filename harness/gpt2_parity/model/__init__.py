"""A model on disk: checkpoints in OpenAI's layout, generated weights, tokenizer files, downloads.

May import: files, contract.
"""
