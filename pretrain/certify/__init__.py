"""Whether every layout of a run computes the same: see docs/certify.md."""
