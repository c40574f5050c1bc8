"""PASS, FAIL or INCONCLUSIVE against an accepted baseline."""
