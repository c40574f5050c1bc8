"""Keys, signatures, signed claims, and a released folder read back."""
