"""PASS, REGRESSED or INCONCLUSIVE against an accepted baseline."""
