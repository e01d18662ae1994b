"""The specimens, gpt2_*.py, and other people's engines, engine_*.py; none imports anything of ours."""
