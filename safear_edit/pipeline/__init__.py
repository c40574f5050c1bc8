"""The walk from a concept spec to a signed model; run.py first."""
