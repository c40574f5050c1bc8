"""Training material: contrastive pairs and images of what must stay."""
