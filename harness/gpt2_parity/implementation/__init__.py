"""The implementation under test: how it is found, held to the contract, loaded and called.

May import: reference, model, files, contract.
"""
