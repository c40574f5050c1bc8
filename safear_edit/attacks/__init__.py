"""Ways to bring an erased concept back, one attack per file, each with a control of the same budget."""
