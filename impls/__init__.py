"""The specimens gpt2_*.py, and adapters for other people's engines, engine_*.py; none imports ours."""
