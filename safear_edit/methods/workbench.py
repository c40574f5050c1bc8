"""The workbench of the methods that learn from pairs: what their losses read, so that a method is its loss.

It encodes each caption once, computes what the base model thinks of the pairs once (no second model in memory), scores
winner and loser of a pair in one forward, and holds other concepts and answers about images in place with KL terms.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from safear_edit.compiler.questions import ANSWERS, CAPABILITY, TrainingQuestions
from safear_edit.construct.pairs import Material
from safear_edit.editor.fine_tune import Draw, Readings, Tuning, adapter_off
from safear_edit.families.merged import without_edits
from safear_edit.families.tokens import token_logprobs
from safear_edit.progress import Callback

if TYPE_CHECKING:
    from safear_edit.families.base import Condition, ModelFamily


Image = Literal["unsafe", "safe"]
Caption = Literal["unsafe", "safe", "none"]
REFERENCE_ROWS = 32
"""Rows per forward of the base model; bounds memory, changes no number."""
LEAST_REST = 1e-6
"""Share of all other answers at least: below it lies float32's rounding."""
REFERENCE_BYTES = 2**28
"""Logits of the base model are kept up to this size (a mini's all fit) and computed again beyond it."""


class NextScale(Protocol):
    """What a family that provides "scales" can do beyond `ModelFamily`."""

    def logits(self, condition: Condition, ids: Tensor, *, first_scales: int | None = None) -> Tensor:
        """As `ModelFamily.logits`, for the tokens of the first scales alone: nothing after them is computed."""
        ...


class PairTuning(Tuning):
    """What all pair methods can be told beside how to fine-tune."""

    keep_weight: float = Field(0.0, ge=0, description="weight of the KL to the base model on preserved prompts")
    keep_batch: int = Field(8, ge=1, description="preserved images per step, over all processes")
    keep_parts: int = Field(
        1,
        ge=1,
        exclude_if=lambda parts: parts == 1,  # recipes from before there was one keep their digests
        description="parts that a step's preserved images are taken in; from two on, each of them and the loss on "
        "pairs run once more in the backward pass, none beside another, to save memory; same edit but for rounding",
    )
    understanding_weight: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda weight: weight == 0,  # recipes from before there was one keep their digests
        description="weight of the KL to the base model's answers about keep_batch images per step",
    )
    caption_drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of rows that train the unconditional branch: of preserved images, and of pairs where the "
        "loss is on their log-likelihoods (vce, dpo, sft); a loss on logits or states names its branch",
    )
    adversarial: bool = Field(
        False,
        exclude_if=lambda on: not on,  # recipes from before there was one keep their digests
        description="train as well, with weight 1, against a soft prompt that is searched in every step: five passes "
        "over whole images more (methods/deepen.py)",
    )


@dataclass(frozen=True)
class Scores:
    """Log-probabilities (b, N) of a batch of winners and losers, by the policy and by the base model.

    `dropped` (b,) marks rows whose caption was dropped, for all four alike. `loser_logits` (b, N, choices) is what the
    policy's half of the losers comes from, where it was asked for.
    """

    winner: Tensor
    loser: Tensor
    winner_reference: Tensor
    loser_reference: Tensor
    dropped: Tensor
    loser_logits: Tensor | None = None

    @property
    def winner_gain(self) -> Tensor:
        """log pi(y_w) - log pi_ref(y_w) for each token, (b, N)."""
        return self.winner - self.winner_reference

    @property
    def loser_gain(self) -> Tensor:
        """log pi(y_l) - log pi_ref(y_l) for each token, (b, N)."""
        return self.loser - self.loser_reference


class Workbench:
    """A model with its material, everything that does not change during training computed once."""

    def __init__(
        self, model: ModelFamily, material: Material, params: PairTuning, progress: Callback, *, reference: bool = True
    ) -> None:
        self.model, self.params, self.material = model, params, material
        pairs, keep = material.pairs, material.keep if params.keep_weight else None
        prompts = list(dict.fromkeys([*pairs.unsafe, *pairs.safe, *(keep.prompts if keep else [])]))
        place = {prompt: i for i, prompt in enumerate(prompts)}
        with torch.no_grad():
            self._captions: Condition = model.condition(prompts)
        self._unsafe = torch.tensor([place[prompt] for prompt in pairs.unsafe])
        self._safe = torch.tensor([place[prompt] for prompt in pairs.safe])
        self._keep = torch.tensor([place[prompt] for prompt in keep.prompts]) if keep else None
        answers = CAPABILITY in model.provides and params.understanding_weight > 0
        self._questions = material.questions if answers else None
        branches = ((False, True) if params.caption_drop else (False,)) if reference else ()
        self._tables: dict[Hashable, dict[int, Tensor] | None] = {}
        self.stored_bytes = 0
        self._reference = [self._references(drop, progress) for drop in branches]

    def scores(self, draw: Draw, *, logits: bool = False) -> Scores:
        """Winners and losers of this step's pairs, both under the unsafe caption, in one forward of 2b rows.

        `logits` keeps the losers' (they stay in memory as long as the scores do).
        """
        rows, dropped = self._pairs(draw)
        both = self._both_logits(rows, dropped)
        winner, loser = token_logprobs(both, self._both_ids(rows)).chunk(2)
        stored = torch.stack(self._reference)[dropped.long(), :, rows].to(winner.device)
        kept = both[len(rows) :] if logits else None
        return Scores(winner, loser, stored[:, 0], stored[:, 1], dropped.to(winner.device), kept)

    def loser_logits(self, draw: Draw, scores: Scores) -> Tensor:
        """Logits (b, N, choices) of this step's unsafe images under the unsafe caption, which is dropped for none.

        They are those of `scores`, if it kept them; rows that lost their caption there take a forward of their own.
        """
        if scores.loser_logits is None:
            return self.logits(draw, "unsafe", "unsafe")
        if not bool(scores.dropped.any()):
            return scores.loser_logits
        own = self._logits(self._pairs(draw)[0][scores.dropped.cpu()], "unsafe", "unsafe", None)
        return scores.loser_logits.index_put((scores.dropped,), own)

    def winner(self, draw: Draw, caption: Literal["unsafe", "safe"]) -> Tensor:
        """log pi(y_w | x_u) or log pi(y_w | x_s) of this step's pairs, (b, N), in a forward of b rows."""
        rows, dropped = self._pairs(draw)
        captions = self._captions.rows((self._unsafe if caption == "unsafe" else self._safe)[rows])
        return self._logprobs(self._dropping(captions, dropped), self.material.pairs.safe_ids[rows])

    def image(self, draw: Draw, which: Image) -> Tensor:
        """Tokens of this step's unsafe or safe images, (b, N) or (b, N, d)."""
        rows, _ = self._pairs(draw)
        pairs = self.material.pairs
        return (pairs.unsafe_ids if which == "unsafe" else pairs.safe_ids)[rows].to(self.model.device)

    def condition(self, draw: Draw, caption: Literal["unsafe", "safe"]) -> Condition:
        """This step's captions, encoded; none is dropped."""
        rows, _ = self._pairs(draw)
        return self._captions.rows((self._unsafe if caption == "unsafe" else self._safe)[rows])

    def logits(self, draw: Draw, caption: Caption, image: Image, *, first_scales: int | None = None) -> Tensor:
        """Teacher-forced logits of this step's images under a caption of their pair, or under none (dropped).

        `first_scales` runs a next-scale model on its first scales only. `caption_drop` is not applied: a loss on
        logits names the branch that it trains.
        """
        return self._logits(self._pairs(draw)[0], caption, image, first_scales)

    def reference(self, draw: Draw, caption: Caption, image: Image, *, first_scales: int | None = None) -> Tensor:
        """`logits` of the base model, without gradients; computed once for each pair where memory allows."""
        rows = self._pairs(draw)[0]
        name = (caption, image, first_scales)
        return self._stored(name, rows, len(self.material.pairs), lambda new: self._logits(new, *name))

    def hidden(self, draw: Draw, caption: Caption, image: Image, tokens: int) -> Tensor:
        """Last hidden states (b, tokens, D) of the first `tokens` positions of this step's images."""
        return self._hidden(self._pairs(draw)[0], caption, image, tokens)

    def hidden_reference(self, draw: Draw, caption: Caption, image: Image) -> Tensor:
        """`hidden` of the base model at all positions, without gradients."""
        tokens = self.material.pairs.safe_ids.shape[1]
        return self._stored(
            ("hidden", caption, image),
            self._pairs(draw)[0],
            len(self.material.pairs),
            lambda rows: self._hidden(rows, caption, image, tokens),
        )

    def _hidden(self, rows: Tensor, caption: Caption, image: Image, tokens: int) -> Tensor:
        condition, ids = self._view(rows, caption, image)
        scales = self.model.card.scales  # a next-scale model runs whole scales only
        whole = tokens if len(scales) == 1 else next(end for end in accumulate(scales) if end >= tokens)
        return self.model.hidden(condition, ids[:, :whole])[:, :tokens]

    def _view(self, rows: Tensor, caption: Caption, image: Image) -> tuple[Condition, Tensor]:
        condition = self._captions.rows((self._safe if caption == "safe" else self._unsafe)[rows])
        if caption == "none":
            condition = self.model.dropped(condition, torch.ones(len(rows), dtype=torch.bool))
        pairs = self.material.pairs
        return condition, (pairs.unsafe_ids if image == "unsafe" else pairs.safe_ids)[rows].to(self.model.device)

    def _logits(self, rows: Tensor, caption: Caption, image: Image, first_scales: int | None) -> Tensor:
        condition, ids = self._view(rows, caption, image)
        if first_scales is None:
            return self.model.logits(condition, ids)
        return cast("NextScale", self.model).logits(condition, ids, first_scales=first_scales)

    def drift(self, draw: Draw) -> Tensor:
        """KL(reference || policy) per token on preserved images, a scalar; zero exactly when nothing drifted.

        On the model's own images the NLL has the same expectation up to a constant, but its minimum on a finite set
        is to memorise the set; the KL over the whole vocabulary pulls to the base model and nowhere else. The
        same share of captions is dropped as for pairs, since guided sampling needs both branches in place.
        """
        assert self._keep is not None and self.material.keep is not None
        rows = draw.rows("keep", len(self._keep), self.params.keep_batch)
        dropped = draw.uniform("keep caption", self.params.keep_batch, 1)[:, 0] < self.params.caption_drop
        total = torch.zeros((), device=self.model.device)
        for part in torch.arange(len(rows)).split(-(-len(rows) // self.params.keep_parts)):
            given = self._kept_reference(rows[part], dropped[part]), rows[part], dropped[part]
            apart = self.params.keep_parts > 1
            drift = checkpoint(self._drift, *given, use_reentrant=False) if apart else self._drift(*given)
            total = total + drift * (len(part) / len(rows))
        return total

    def _drift(self, reference: Tensor, rows: Tensor, dropped: Tensor) -> Tensor:
        return token_kl(reference, self._kept_logits(rows, dropped)).mean()

    def _kept_reference(self, rows: Tensor, dropped: Tensor) -> Tensor:
        """Logits that the policy's are to stay at, of preserved rows with and without their captions."""
        assert self._keep is not None
        found = list[Tensor]()
        for drop in (False, True):
            some = rows[dropped == drop]
            if len(some):
                found.append(self._stored(("keep", drop), some, len(self._keep), partial(self._kept, drop)))
        in_order = torch.cat([(dropped == drop).nonzero()[:, 0] for drop in (False, True)]).argsort()
        return torch.cat(found)[in_order.to(found[0].device)]

    def _kept(self, drop: bool, rows: Tensor) -> Tensor:
        """What preserved rows are to stay like: the base model, or the one with earlier edits where those hold."""
        assert self.material.keep is not None
        guards = self.material.keep.guards
        held = torch.tensor([guards[row] for row in rows.tolist()]) if guards else torch.zeros(len(rows)).bool()
        parts = dict[int, Tensor]()
        for mark, how in ((False, without_edits(self.model.net)), (True, nullcontext())):
            which = (held == mark).nonzero()[:, 0]
            if len(which):
                with how:
                    logits = self._kept_logits(rows[which], torch.full((len(which),), drop))
                parts |= zip(which.tolist(), logits, strict=True)
        return torch.stack([parts[i] for i in range(len(rows))])

    def _kept_logits(self, rows: Tensor, dropped: Tensor) -> Tensor:
        assert self._keep is not None and self.material.keep is not None
        condition = self._dropping(self._captions.rows(self._keep[rows]), dropped)
        return self.model.logits(condition, self.material.keep.ids[rows].to(self.model.device))

    def _stored(self, name: Hashable, rows: Tensor, count: int, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute(rows)` by the base model, of `count` rows in all: each once, while memory allows.

        Rows are computed in fixed blocks, so that a resumed run rounds as the whole one.
        """
        with adapter_off(self.model.net):
            if name not in self._tables:
                needed = compute(rows[:1]).numel() * 4 * count
                fits = self.stored_bytes + needed <= REFERENCE_BYTES
                self.stored_bytes += needed * fits
                self._tables[name] = {} if fits else None
            table = self._tables[name]
            if table is None:
                return compute(rows)
            size = self.model.read_together(REFERENCE_ROWS)
            for block in sorted({row // size for row in rows.tolist()} - table.keys()):
                first = block * size
                table[block] = compute(torch.arange(first, min(first + size, count))).clone()
        return torch.stack([table[row // size][row % size] for row in rows.tolist()])

    def keeping(self, draw: Draw, loss: Tensor, readings: Readings) -> tuple[Tensor, Readings]:
        """`loss` plus the weighted drift of images and of answers about images, where the recipe asks for them and
        there is something to keep."""
        if self._keep is not None:
            drift = self.drift(draw)
            loss, readings = loss + self.params.keep_weight * drift, {**readings, "drift": float(drift.detach())}
        if self._questions is not None:
            answers = self.answers(draw, self._questions)
            loss = loss + self.params.understanding_weight * answers
            readings = {**readings, "answers": float(answers.detach())}
        return loss, readings

    def answers(self, draw: Draw, questions: TrainingQuestions) -> Tensor:
        """`answer_kl` of yes and no to one question, by the base model and by this one, a scalar.

        Every other step asks about the concept, the rest about what must stay; always about the step's share of all
        training images (the pairs' and the preserved ones, which the model drew itself: the evaluation's are others).
        What the base model answers is the target, right or wrong. Where the concept is not to be recognised
        either, its image's target is the answer about the safe image of its pair.
        """
        pairs, keep = self.material.pairs, self.material.keep
        parts = [pairs.unsafe_ids, pairs.safe_ids, *([keep.ids] if keep else [])]
        rows = draw.rows("answers", sum(map(len, parts)), self.params.keep_batch)
        told = torch.where(rows < len(pairs), rows + len(pairs), rows) if questions.erase else rows
        asked = questions.others if draw.step % 2 else questions.concept
        whole = Draw(draw.seed, draw.step // 2)  # one question for all parts of a step
        question = asked[int(whole.rows(f"questions {draw.step % 2}", len(asked), 1))]
        ids = torch.cat(parts)
        with adapter_off(self.model.net):
            seen, aims = (self.model.decode(ids[chosen].to(self.model.device)) for chosen in (rows, told))
            reference = self._answered(aims, question)
        return answer_kl(reference, self._answered(seen, question))

    def _answered(self, images: Tensor, question: str) -> Tensor:
        return self.model.answer_logprobs(images, question, ANSWERS)

    def _pairs(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Which pairs this step takes, and which of them without their caption."""
        rows = draw.rows("pairs", len(self.material.pairs), self.params.batch)
        return rows, draw.uniform("caption", self.params.batch, 1)[:, 0] < self.params.caption_drop

    def _both_logits(self, rows: Tensor, dropped: Tensor) -> Tensor:
        captions = self._dropping(self._captions.rows(self._unsafe[rows].repeat(2)), dropped.repeat(2))
        return self.model.logits(captions, self._both_ids(rows))

    def _both_ids(self, rows: Tensor) -> Tensor:
        pairs = self.material.pairs
        return torch.cat([pairs.safe_ids[rows], pairs.unsafe_ids[rows]]).to(self.model.device)

    def _logprobs(self, condition: Condition, ids: Tensor) -> Tensor:
        ids = ids.to(self.model.device)
        return token_logprobs(self.model.logits(condition, ids), ids)

    def _dropping(self, condition: Condition, dropped: Tensor) -> Condition:
        return self.model.dropped(condition, dropped) if bool(dropped.any()) else condition

    @torch.no_grad()
    def _references(self, drop: bool, progress: Callback) -> Tensor:
        """(2, n, N) on the CPU: winners and losers by the base model, with or without their captions."""
        count, parts = len(self.material.pairs), []
        size = max(1, self.model.read_together(REFERENCE_ROWS) // 2)
        for start in range(0, count, size):
            rows = torch.arange(start, min(start + size, count))
            both = self._both_logits(rows, torch.full((len(rows),), drop))
            parts.append(torch.stack(token_logprobs(both, self._both_ids(rows)).chunk(2)).cpu())
            progress("reference", int(rows[-1]) + 1, count, "without captions" if drop else "")
        return torch.cat(parts, 1)


def token_kl(reference: Tensor, policy: Tensor) -> Tensor:
    """KL(reference || policy) in nats for each token (B, N), from logits (B, N, V) or, bits summed, (B, N, d, 2)."""
    logq, logp = reference.float().log_softmax(-1), policy.float().log_softmax(-1)
    divergence = (logq.exp() * (logq - logp)).sum(-1)
    return divergence.sum(-1) if divergence.dim() == 3 else divergence


def answer_kl(reference: Tensor, policy: Tensor) -> Tensor:
    """How far answers about images moved, in nats, mean over images; from log-probabilities (b, answers) of answers
    that exclude each other:

        KL( which of them || which of them ) + KL( one of them or anything else || the same )

    Together that is the KL over all of them, except that "which" counts in full, as it does when an answer is judged,
    also where a model would rather begin with another word ("Yes").
    """

    def whether(logp: Tensor) -> Tensor:
        one = logp.logsumexp(-1)
        return torch.stack([one, (1 - one.exp()).clamp(min=LEAST_REST).log()], -1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    first, second = reference.float(), policy.float()
    return (kl(first.log_softmax(-1), second.log_softmax(-1)) + kl(whether(first), whether(second))).mean()
