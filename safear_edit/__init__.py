"""safear-edit: erase a named concept from an autoregressive image generator, measure what happened, sign the result.

The story in ten lines (pipeline.py tells it with code):

    spec.py, compiler.py    a person's YAML becomes a recipe: every prompt, seed, number and gate, hashed
    pairs.py                the model draws contrastive pairs: same seed, with the concept and without it
    methods/, edit.py       a method finds an Edit: a small file that is applied to the weights and removed exactly
    judges/, evaluate.py    base and edited model draw the same prompts with the same seeds; judges look
    report.py, render.py    the outcomes become a report, from files alone
    signing.py, claims.py   every file of the released folder is signed, and so is how it was made
    verify.py               anyone with the public key can check that nothing changed
"""

__all__: list[str] = []
