"""The implementation under test: how it is found, checked for the contract, loaded and called.

May import: reference, model, files, contract.
"""
