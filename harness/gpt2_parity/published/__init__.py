"""Facts that others have published about the official checkpoints, and how they are asked.

May import: run, implementation, reference, model, files, contract.
"""
