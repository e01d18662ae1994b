"""Memory-mapped safetensors, atomic writes, strict JSON, hashes, folders of results, shipped data.

May import: contract.
"""
