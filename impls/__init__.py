"""The specimens: one readable GPT-2 a file, each importing its framework and nothing of ours."""
