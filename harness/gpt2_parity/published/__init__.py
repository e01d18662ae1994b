"""Facts that others have published about the official checkpoints, and their comparison.

May import: run, implementation, reference, model, files, contract.
"""
