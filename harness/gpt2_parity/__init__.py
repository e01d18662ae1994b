"""gpt2-parity: is this GPT-2 right, where does it break, and how fast is it?

Importing this package imports no framework: workers and oracles load them when they need them.
"""

__version__ = "0.1.0"
