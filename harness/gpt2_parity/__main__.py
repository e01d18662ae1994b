"""python -m gpt2_parity: the same as the command parity."""

from gpt2_parity.cli import main

main()
