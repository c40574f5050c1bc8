"""What a person writes: concept specs and the prompts that follow from them."""
