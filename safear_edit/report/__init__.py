"""Reads a run's files and writes the report, the model card and the bill of materials; no model, no torch."""
