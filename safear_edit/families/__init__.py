"""Model families: one file per architecture, found by its decorator (registry.py)."""
