"""Ways to bring an erased concept back, one attack per file, each with a control where nothing can come back."""
