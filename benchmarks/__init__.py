"""Benchmarks that asv tracks from commit to commit (asv.conf.json). To compare now: parity bench."""
