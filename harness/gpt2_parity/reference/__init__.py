"""What is true: the float64 oracle and its gradients, the noise floor, rounding bounds, golden records.

Nothing here calls an implementation that is under test. May import: model, files, contract.
"""
