"""Benchmarks, ablations and sweeps: commands for those who develop methods."""
