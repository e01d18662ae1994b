"""Files: memory-mapped safetensors, atomic writes, strict JSON, hashes, what ships with the package.

May import: contract.
"""
