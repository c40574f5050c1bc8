"""Two losses that make an edit deeper than what is sampled shows; a pair method adds them to its own.

Depth: on images of the concept, under the caption that asks for it, the edited model is to predict what the base model
predicts under the caption that doesn't, and so it is under that caption itself. That brings CIR's numerator, concept
information retained (evaluate/likelihood.py), to 0 token by token. A preference alone stops where the safe image wins.

Adversarial: a small attack inside every step: vectors in the safe caption that make the concept's images likelier are
looked for, and under them the images are made unlikelier than the base model has them without its name (latent
adversarial training, Casper et al. 2024, https://arxiv.org/abs/2403.05030, with a soft prompt as the perturbation and
the loss of negative preference optimisation). The search starts anew at every step from numbers of that step, so a
killed run goes on to the same edit. To hold the images at the base model's prediction instead, as depth does, was no
defence: soft prompts found the concept as often (examples/results, attacks on llamagen:mini).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from safear_edit.editor.fine_tune import Draw
from safear_edit.editor.gradients import gradients
from safear_edit.families.tokens import token_logprobs
from safear_edit.methods.workbench import Scores, Workbench, token_kl

VECTORS = 4
SHARPNESS = 5.0
"""Of the preference, on averages per token, as VCE's beta."""
INNER = 4
"""Steps of the attack inside a step, each as long as token states are spread: together as far as a soft prompt gets."""


def depth(bench: Workbench, draw: Draw, scores: Scores) -> Tensor:
    """KL( base(. | x_s, y_l) || policy(. | x, y_l) ) in nats per token, mean over x = x_u and x_s and over this step's
    pairs; b rows beside those of `scores`, which must have kept its losers' logits, and one for each dropped caption.

    Both captions: a preference makes the concept's images unlikely under any caption, and where the safe caption's lose
    more than the unsafe one's, naming the concept still helps.
    """
    reference = bench.reference(draw, "safe", "unsafe")
    both = bench.loser_logits(draw, scores), bench.logits(draw, "safe", "unsafe")
    unsafe, safe = (token_kl(reference, policy).mean() for policy in both)
    return (unsafe + safe) / 2


def adversarial(bench: Workbench, draw: Draw) -> Tensor:
    """-2/s log sigmoid( -s (log policy(y_l | x_s + vectors) - log base(y_l | x_s)) ), s = SHARPNESS, log-likelihoods
    in nats per token, mean over this step's pairs, with vectors found against this very policy (Zhang et al. 2024,
    https://arxiv.org/abs/2404.05868, their loss L_NPO).

    Its slope fades as the images get unlikely, so it doesn't tear the model apart as plain ascent does. INNER passes of
    b rows with gradient, and one more.
    """
    model, plain, ids = bench.model, bench.condition(draw, "safe"), bench.image(draw, "unsafe")
    before = token_logprobs(bench.reference(draw, "safe", "unsafe"), ids).mean(1)
    vectors = found(bench, draw)
    after = token_logprobs(model.logits(model.with_vectors(plain, vectors), ids), ids).mean(1)
    return -2 / SHARPNESS * F.logsigmoid(SHARPNESS * (before - after)).mean()


def found(bench: Workbench, draw: Draw, steps: int = INNER) -> Tensor:
    """Vectors (VECTORS, C) under which the policy makes this step's unsafe images likelier; the policy gathers no
    gradients. Signed gradient steps, each one spread of the captions' token states long."""
    model, plain, ids = bench.model, bench.condition(draw, "safe"), bench.image(draw, "unsafe")
    states = plain.features[plain.mask].float()
    generator = torch.Generator().manual_seed(draw.number("adversary"))
    noise = torch.randn(VECTORS, states.shape[1], generator=generator).to(states)
    vectors = states.mean(0) + 0.1 * states.std() * noise
    for _ in range(steps):
        vectors.requires_grad_()
        loss = -token_logprobs(model.logits(model.with_vectors(plain, vectors), ids), ids).mean()
        (slope,) = gradients(model.net, loss, [vectors])
        vectors = vectors.detach() - states.std() * slope.sign()
    return vectors
