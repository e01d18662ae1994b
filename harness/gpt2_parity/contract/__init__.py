"""The ground floor: definitions that every other folder uses.

GPT-2's sizes and operations, the interface of an implementation, dtypes, limits, and the plain records
of a run: plans, measurements and rows. Imports nothing else of the package.
"""
