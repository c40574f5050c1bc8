"""Names of files that one step writes and another looks for, and that belong to neither alone."""

from __future__ import annotations

OWN_WEIGHTS = "edited.safetensors"
"""The weights of a model that no published layout has a place for. No other code looks for this name: it stops, where
under the usual one it would load what it knows, leave the edit out and draw as the unedited model."""
