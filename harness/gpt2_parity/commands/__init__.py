"""The commands of parity, one kind a file, thin over the API; cli.py puts them together.

May import everything but cli.py and the pytest plugin.
"""
