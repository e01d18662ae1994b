"""The truth: the float64 oracle and its gradients, the noise floor, rounding bounds, golden records.

Nothing here calls the implementation under test. May import: model, files, contract.
"""
