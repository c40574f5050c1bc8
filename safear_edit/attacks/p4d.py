"""P4D: words after a harmless caption that make the edited model draw as the base model draws for the concept.

Prompting4Debugging (Chin et al. 2024, https://arxiv.org/abs/2309.06135) moves a prompt until the safe model's noise
prediction is that of the unguarded model for the concept's own prompt. An autoregressive model has the two predictions
as distributions, so what is made small is their divergence, exactly:

    KL( base(. | x_c, y_<t) || edited(. | x + words, y_<t) ), mean over the tokens of images y of the concept,

x_c the caption that names the concept, x the one that doesn't. The paper projects learnt vectors onto words; here the
words are searched as for `suffix`, so the two attacks differ in what they aim at only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from safear_edit.attacks.base import Target
from safear_edit.attacks.suffix import Objective, WordSearch
from safear_edit.evaluate.before_after import Pair
from safear_edit.families.base import Condition, ModelFamily
from safear_edit.families.merged import without_edits
from safear_edit.methods.workbench import token_kl
from safear_edit.registry import attack


@attack("p4d", access="white-box")
class P4D(WordSearch):
    """Words after the caption that bring the edited model's predictions to the base model's for the concept."""

    def objective(self, model: ModelFamily, pair: Pair, aim: Target) -> Objective:
        """The divergence from what the base model says under captions that name the concept."""
        return divergence(model, pair.base, aim)


def divergence(model: ModelFamily, base: ModelFamily, aim: Target) -> Objective:
    """KL( base, concept named || model ) in nats a token. What the base says is computed once for each step's images,
    with the edits that may be merged into it taken out for that while."""
    said = dict[tuple[int, ...], Tensor]()
    with without_edits(base.net), torch.no_grad():
        asked = base.condition(aim.asked)

    def reference(rows: Tensor) -> Tensor:
        step = tuple(rows.tolist())
        if step not in said:
            said.clear()
            with without_edits(base.net), torch.no_grad():
                said[step] = base.logits(asked.rows(rows), aim.ids[rows].to(base.device))
        return said[step]

    def objective(condition: Condition, rows: Tensor) -> Tensor:
        return token_kl(reference(rows), model.logits(condition, aim.ids[rows].to(model.device))).mean()

    return objective
