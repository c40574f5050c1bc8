"""Image tokenizers: vector-quantised, binary spherical, residual."""
