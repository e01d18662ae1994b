"""From measurements to a verdict: judging, blame, known failures, and the one module that writes prose.

May import: checks, mistakes, contract.
"""
