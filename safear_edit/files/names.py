"""Names of files that one step writes and another looks for, and that belong to neither alone."""

from __future__ import annotations

EXPORTED = (
    "gpt.safetensors",
    "edited.safetensors",
    "model.safetensors",
    "llm/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "transformer/diffusion_pytorch_model.safetensors",
)
"""Under which of these an `export` keeps the transformer's weights; what isn't among them is read in float32."""

OWN_WEIGHTS = "edited.safetensors"
"""The weights of a model that no published layout has a place for. No other code looks for this name: it stops, where
under the usual one it would load what it knows, leave the edit out and draw as the unedited model."""
