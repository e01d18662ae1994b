"""The checks, one per file. A check measures; verdict/judge.py judges.

Each file ends with its declaration, CHECK (fields: contract/check.py); checks/registry.py puts them in
order. No check imports another.
May import: mistakes, implementation, reference, contract.
"""
