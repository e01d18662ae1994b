"""The checks, one a file. A check measures; verdict/judge.py judges.

Each file ends with its one declaration, CHECK (contract/check.py says what that holds); registry.py puts
them in order. A check knows no other check.
May import: mistakes, implementation, reference, contract.
"""
