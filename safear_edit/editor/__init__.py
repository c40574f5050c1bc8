"""Edits: small frozen objects that are found, looked at, applied and removed."""
