"""Transformer, state-space and vision layers that several families share."""
