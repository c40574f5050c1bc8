"""Model families: one file per architecture, found by its decorator (registry.py).

Show-o is not among them: it draws by masked diffusion, many tokens at a time in an order of its own, and every method
here edits what a model says about the next token or the next scale.
"""
