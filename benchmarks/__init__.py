"""What asv follows from commit to commit; see asv.conf.json. For a comparison now: parity bench."""
