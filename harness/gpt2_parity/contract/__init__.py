"""The ground floor: the words that every other folder uses.

GPT-2's sizes and operations, what an implementation is, the precisions, and the plain records that
travel through a run: plans, measurements and rows. Imports nothing else of the package.
"""
