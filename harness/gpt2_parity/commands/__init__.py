"""The commands of parity, one kind a file; cli.py puts them together.

May import everything but the entry points.
"""
