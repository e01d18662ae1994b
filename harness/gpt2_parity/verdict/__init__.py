"""From measurements to a verdict: judge, blame, known failures, and the one module that writes prose.

May import: checks, mistakes, contract.
"""
