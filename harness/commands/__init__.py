"""The commands of parity, one kind a file; cli.py puts them together."""
