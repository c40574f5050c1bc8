"""safear-edit: erase a named concept from an autoregressive image generator, measure what happened, sign the result.

The story in eight lines (pipeline/run.py tells it with code):

    spec/, compiler/       a person's YAML becomes a recipe: every prompt, seed, number and gate, hashed
    construct/             the model draws contrastive pairs: same seed, with the concept and without it
    methods/, editor/      a method finds an Edit: a small file that is applied to the weights and removed exactly
    judges/, evaluate/     base and edited model draw the same prompts with the same seeds; judges look
    report/                the outcomes become a report, from files alone
    gate/                  a later run is held to what was accepted
    release/               every file of the released folder is signed, and so is how it was made; anyone with the
                           public key can check that nothing changed
"""

__all__: list[str] = []
