"""Files: memory-mapped safetensors, atomic writes, strict JSON, hashes, and the data shipped with us.

May import: contract.
"""
