"""Strict YAML and JSON, safe weight reading, atomic writes, run folders."""
