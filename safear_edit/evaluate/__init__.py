"""Base and edited model on the same prompts and seeds: images judged, likelihoods, answers, interference."""
