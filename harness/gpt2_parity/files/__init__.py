"""Files: memory-mapped safetensors, atomic writes, strict JSON, hashes, data that ships with the package.

May import: contract.
"""
