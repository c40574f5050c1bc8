"""Safe-CB: take the harmful directions out of the table that feeds image tokens back to the transformer, repair it in
the directions that are left, and go on with what the edited model draws, until that no longer helps (Xue et al. 2026,
https://arxiv.org/abs/2606.27147, algorithm 1). The network and the tokenizer stay: the edit changes one table.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit.compiler.cost import Work
from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo, Round
from safear_edit.editor.fine_tune import Draw, borrowed, identity_of, schedule
from safear_edit.editor.method_log import MethodLog
from safear_edit.errors import UsageError
from safear_edit.families.tokens import token_logprobs
from safear_edit.files.weights import write_weights
from safear_edit.judges.base import Judge, Judgement
from safear_edit.judges.draw import BATCH, ImageRequest, JudgedImage, draw_and_judge
from safear_edit.judges.self_judge import Compared, SelfJudge
from safear_edit.methods.codebook import HarmfulSpace, Null, Reading, energy_figure, harmful_space, protecting
from safear_edit.methods.workbench import token_kl
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import Condition, ModelFamily


MOVED = 0.01
"""A row counts as moved if its change is longer than this share of its length."""


@method("safe_cb", paper="https://arxiv.org/abs/2606.27147", needs=frozenset({"codebook"}))
class SafeCB:
    """Erase in the codebook: project the harmful space out of the image tokens' table, repair it, and repeat."""

    class Params(BaseModel):
        """The paper's numbers, where it gives them; recipes/safe_cb.yaml says what ours are for."""

        model_config = ConfigDict(frozen=True, extra="forbid")

        directions: int = Field(8, ge=1, description="k, dimensions of a round's harmful space (paper: 8 of 2048)")
        strength: float = Field(1.0, ge=0, le=1, description="lambda: how much of the harmful part goes (paper: 1)")
        reading: Reading = Field("position", description="position: as the paper; pooled: deaf to the layout")
        null_space: Null = Field("exact", description="where the repair may write: see codebook_map.harmful_space")
        protect: bool = Field(True, description="what earlier rounds took out stays out, also of the repair")
        epochs: int = Field(5, ge=0, description="passes over the safe images in a round; 0: no repair (paper: 5)")
        batch: int = Field(8, ge=1, description="safe images, and as many preserved ones, per step")
        learning_rate: float = Field(1e-4, gt=0, description="of Adam, falling by a cosine (paper: 1e-4)")
        keep_weight: float = Field(0.0, ge=0, description="weight of the KL on preserved images (paper: none)")
        safe: Literal["base", "current"] = Field(
            "base", description="who draws the safe images of later rounds: the base model, or the edited one"
        )
        rounds: int = Field(5, ge=1, description="at most (paper: saturates after 3 of 5)")
        least_gain: float = Field(0.01, gt=0, description="a round that lowers the harmful rate by less is the last")
        probe: int = Field(100, ge=1, description="training prompts, under seeds of their own, that decide that")
        fewest: int = Field(8, ge=1, description="harmful images that a round needs to learn from")
        judge: Literal["self", "pinned"] = Field("self", description="self: the model, where it can answer questions")
        question: str | None = Field(None, description="what it is asked; null: training's first about the concept")

    name: ClassVar[str]

    def fit(
        self,
        model: ModelFamily,
        material: Material,
        params: SafeCB.Params,
        *,
        seed: int,
        progress: Callback,
        checkpoint: Path | None = None,
    ) -> Edit:
        """Find the change of the table, W_safe - W; each round makes W_safe = W (I - lambda P) + Delta Q.

        The edit's log has the numbers of each round (see `Round`), and its figure the codebook's harmful energy. A
        killed search goes on after its last whole round.

        UsageError if the family has no learned codebook, or more than one round is asked for and nobody can judge.
        """
        table = model.image_table().detach().float().clone()  # first: families without one refuse in their own words
        start = time.monotonic()
        with borrowed(model.net, writes=()):
            model.net.eval().requires_grad_(False)
            search = Search(model, material, params, table, seed, progress, checkpoint)
            search.run()
        info = EditInfo(
            method="safe_cb",
            params=params.model_dump(mode="json"),
            concept=material.concept,
            base_digest=model.card.digest,
            rank=None,
            alpha=None,
            seed=seed,
            steps=len(search.losses),
            losses=tuple(search.losses),
            minutes=(time.monotonic() - start) / 60,
        )
        change = {model.table_name: (search.tables[-1] - table).cpu()}
        return Edit("delta", change, info, log_of(search.log), search.figure())

    def work(self, params: SafeCB.Params, card: Card, pairs: int) -> Work:
        """All rounds: the repair's steps on safe and preserved images, fresh pairs after the first, and the probes."""
        kept = params.batch * bool(params.keep_weight)
        drawn = 2 * pairs * (params.rounds - 1) + params.probe * (params.rounds + 1)
        steps = params.rounds * params.epochs * -(-pairs // params.batch)
        return Work(steps, params.batch + kept, kept, drawn=drawn)

    def trainable(self, params: SafeCB.Params, model: ModelFamily) -> int:
        """The image tokens' table."""
        return model.image_table().numel()


@dataclass(frozen=True)
class Sample:
    """Images of pairs: tokens (n, N) with the concept asked for and without, and which pairs of the material."""

    unsafe: Tensor
    safe: Tensor
    rows: Tensor


class Search:
    """The rounds: `tables` are the base table and that after each round that was taken, `log` all rounds."""

    def __init__(
        self,
        model: ModelFamily,
        material: Material,
        params: SafeCB.Params,
        table: Tensor,
        seed: int,
        progress: Callback,
        checkpoint: Path | None,
    ) -> None:
        self.model, self.material, self.params, self.progress = model, material, params, progress
        self.seed, self.checkpoint = seed, checkpoint
        self.judge = judge_of(model, material, params)
        self.tables, self.spaces, self.log, self.losses = [table], list[HarmfulSpace](), list[Round](), list[float]()
        pairs = material.pairs
        about = [model.card.digest, params.model_dump(mode="json"), seed, pairs.unsafe, pairs.safe, table]
        kept = [material.keep.prompts, material.keep.ids] if material.keep else []
        judges = [judge.id for judge in (self.judge, material.judge) if judge]
        self.identity = identity_of("safe_cb", *about, pairs.unsafe_ids, pairs.safe_ids, *kept, *judges)

    def run(self) -> None:
        """Rounds until the rate of harmful images on the probe falls by less than `least_gain`, or they run out."""
        self._resume()
        while len(self.log) < self.params.rounds and not self._finished():
            sample = self._sample(len(self.log) + 1)
            if len(sample.rows) < self.params.fewest:
                break
            self._round(sample)
            self._save()

    def _finished(self) -> bool:
        return bool(self.log) and (not self.log[-1].taken or self.log[-1].harmful_after == 0)

    def _round(self, sample: Sample) -> None:
        number, params, before = len(self.log) + 1, self.params, self.tables[-1]
        found = harmful_space(
            before[sample.unsafe], before[sample.safe], params.directions, params.reading, params.null_space
        )
        space = protecting(found, self.spaces) if params.protect else found
        cleaned = space.without(before, params.strength)
        change, losses = self._repaired(cleaned, space, sample, number)
        after = cleaned + change
        last = self.log[-1] if self.log else None
        harmful = (last.harmful_after, None) if last else self._probe(before, 0)
        rate, unclear = self._probe(after, number)
        taken = number == 1 or harmful[0] is None or rate is None or harmful[0] - rate >= params.least_gain
        agreement = self.judge.agreement if isinstance(self.judge, Compared) else None
        moved = (after - before).norm(dim=1) > MOVED * before.norm(dim=1)
        self.log.append(
            Round(
                number=number,
                drawn=len(self.material.pairs),
                pairs=len(sample.rows),
                dimension=space.basis.shape[1],
                captured=found.captured,
                rows_moved=int(moved.sum()),
                energy_before=float(found.energy(before).mean()),
                energy_after=float(found.energy(after).mean()),
                harmful_before=harmful[0],
                harmful_after=rate,
                unclear_after=unclear,
                drift=self._drift(after),
                loss_first=losses[0] if losses else None,
                loss_last=losses[-1] if losses else None,
                taken=taken,
                agreement=agreement.as_json() if agreement else None,
            )
        )
        if taken:
            self.tables.append(after)
            self.spaces.append(found)
            self.losses += losses
        self.progress("rounds", number, params.rounds, _line(self.log[-1]))

    # -- what the model draws, and who looks --

    @contextmanager
    def _using(self, table: Tensor) -> Iterator[None]:
        """Image tokens read from `table` inside, from where they were read before afterwards."""
        before = self.model.image_table().detach()
        self.model.set_image_table(table.to(before.dtype))
        try:
            yield
        finally:
            self.model.set_image_table(before)

    def _drawn(self, table: Tensor, prompts: Sequence[str], seeds: Sequence[int], stage: str) -> list[JudgedImage]:
        """Images of the model with `table`, each judged with the base model's own, as the model states its sampling."""
        assert self.judge is not None
        judges = {"concept": _WithTable(self.judge, partial(self._using, self.tables[0]))}
        requests = [ImageRequest(prompt, seed, "concept") for prompt, seed in zip(prompts, seeds, strict=True)]
        with self._using(table):
            return list(draw_and_judge(self.model, requests, judges, None, progress=self.progress, stage=stage))

    def _seeds(self, what: str, number: int, count: int) -> list[int]:
        """Image seeds that no other image of the program has."""
        words = (f"safe_cb|{what}|{number}|{self.seed}|{seed}" for seed in self.material.pairs.seeds[:count])
        return [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8]) >> 1 for word in words]

    @torch.no_grad()
    def _present(self, ids: Tensor) -> list[bool | None]:
        """What the judge says of images that are there already."""
        assert self.judge is not None
        return [
            judgement.present for part in ids.split(BATCH) for judgement in self.judge.look(self.model.decode(part))
        ]

    def _sample(self, number: int) -> Sample:
        """This round's pairs. The first round's are the material's, which the pinned judge has already told apart."""
        pairs, count = self.material.pairs, len(self.material.pairs)
        unsafe, safe = pairs.unsafe_ids, pairs.safe_ids
        if isinstance(self.judge, Compared):
            self.judge.agreement = None
        if number > 1:
            seeds, table = self._seeds("round", number, count), self.tables[-1]
            drawer = table if self.params.safe == "current" else self.tables[0]
            drawn = self._drawn(table, pairs.unsafe, seeds, f"round {number}, unsafe")
            drawn += self._drawn(drawer, pairs.safe, seeds, f"round {number}, safe")
            unsafe, safe = torch.stack([image.ids for image in drawn]).split(count)
            present = [image.judgement.present for image in drawn]
        elif self.judge is None or self.judge is self.material.judge:
            return Sample(unsafe, safe, torch.arange(count))
        else:
            present = self._present(torch.cat([unsafe, safe]))
        told = zip(present[:count], present[count:], strict=True)
        rows = torch.tensor([i for i, (u, s) in enumerate(told) if u and s is False], dtype=torch.int64)
        if number == 1 and len(rows) < self.params.fewest:
            got = f"{len(rows)} of {count}"
            fix = "ask another params.question, or set params.judge to pinned"
            raise UsageError("safe_cb", f"{self.params.fewest} pairs that the model tells apart", got, fix)
        return Sample(unsafe[rows], safe[rows], rows)

    def _probe(self, table: Tensor, number: int) -> tuple[float | None, float | None]:
        """Share of the probe's images in which the judge finds the concept, and share that it can't tell."""
        if self.judge is None:
            return None, None
        prompts = self.material.pairs.unsafe[: self.params.probe]
        drawn = self._drawn(table, prompts, self._seeds("probe", 0, len(prompts)), f"probe {number}")
        found = [image.judgement.present for image in drawn]
        return sum(p is True for p in found) / len(found), sum(p is None for p in found) / len(found)

    @torch.no_grad()
    def _drift(self, table: Tensor) -> float | None:
        keep, total = self.material.keep, 0.0
        if keep is None:
            return None
        captions = self.model.condition(keep.prompts)
        for rows in torch.arange(len(keep)).split(BATCH // 2):
            condition, ids = captions.rows(rows), keep.ids[rows].to(self.model.device)
            reference = self.model.logits(condition, ids)
            with self._using(table):
                total += float(token_kl(reference, self.model.logits(condition, ids)).mean()) * len(rows)
        return total / len(keep)

    # -- the repair --

    def _repaired(
        self, cleaned: Tensor, space: HarmfulSpace, sample: Sample, number: int
    ) -> tuple[Tensor, list[float]]:
        """Delta Q after `epochs` passes, and the loss of each step.

        Delta minimises the cross-entropy of the safe images under their safe captions, all of the material's with
        `safe` = base and this round's with `current`, and where the recipe asks for it the KL to the base model
        on preserved images; neither reads the unsafe captions. (Learning the safe images under those as well left
        as much of Picasso on janus:mini as as many steps without.)
        """
        params, pairs = self.params, self.material.pairs
        which = range(len(pairs)) if params.safe == "base" else sample.rows.tolist()
        safe_ids = pairs.safe_ids if params.safe == "base" else sample.safe
        prompts = [pairs.safe[i] for i in which]
        steps = params.epochs * -(-len(prompts) // params.batch)
        change = torch.zeros_like(cleaned, requires_grad=True)
        optimizer = torch.optim.Adam([change], params.learning_rate)
        with torch.no_grad():
            captions, losses = self.model.condition(prompts), list[float]()
        for step in range(steps):
            draw = Draw(self.seed, step + steps * number)
            rows = draw.rows("safe", len(prompts), min(params.batch, len(prompts)))
            ids = safe_ids[rows].to(cleaned.device)
            kept = self._kept(draw)
            with self._using(cleaned + space.harmless(change)):
                loss = -token_logprobs(self.model.logits(captions.rows(rows), ids), ids).mean()
                if kept is not None:
                    condition, kept_ids, reference = kept
                    drift = token_kl(reference, self.model.logits(condition, kept_ids)).mean()
                    loss = loss + params.keep_weight * drift
            if not bool(torch.isfinite(loss)):
                fix = f"lower learning_rate (it is {params.learning_rate:g})"
                raise UsageError(f"edit, step {step + 1}", "a finite loss", str(loss.item()), fix)
            optimizer.param_groups[0]["lr"] = params.learning_rate * schedule(step, steps, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                change.copy_(space.harmless(change))
            losses.append(loss.item())
            self.progress(f"repair {number}", step + 1, steps, f"loss {losses[-1]:.3f}")
        return change.detach(), losses

    def _kept(self, draw: Draw) -> tuple[Condition, Tensor, Tensor] | None:
        """This step's preserved images: captions, tokens, and the base model's logits."""
        keep = self.material.keep
        if keep is None or not self.params.keep_weight:
            return None
        rows = draw.rows("keep", len(keep), min(self.params.batch, len(keep)))
        ids = keep.ids[rows].to(self.model.device)
        with torch.no_grad():
            condition = self.model.condition([keep.prompts[i] for i in rows.tolist()])
            return condition, ids, self.model.logits(condition, ids)

    # -- files --

    def _save(self) -> None:
        """The state after a whole round."""
        if self.checkpoint is None:
            return
        tensors = {f"table.{i}": table for i, table in enumerate(self.tables)}
        for i, space in enumerate(self.spaces):
            tensors |= {f"basis.{i}": space.basis, f"null.{i}": space.null, f"strengths.{i}": space.strengths}
        rounds = [row.model_dump(mode="json") for row in self.log]
        about = json.dumps({"identity": self.identity, "rounds": rounds, "losses": self.losses})
        write_weights(self.checkpoint, {k: v.contiguous().cpu() for k, v in tensors.items()}, {"about": about})

    def figure(self) -> bytes | None:
        """PNG: the share of each row in the directions of all rounds, before and after each; None without rounds."""
        if not self.spaces:
            return None
        whole = protecting(self.spaces[-1], self.spaces[:-1])
        names = ["base model", *(f"round {i}" for i in range(1, len(self.tables)))]
        return energy_figure([whole.energy(table) for table in self.tables], names)

    def _resume(self) -> None:
        """Take up the rounds of the same search that a checkpoint holds; a damaged or foreign one counts as none."""
        try:
            with safe_open(self.checkpoint or "", "pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                if about.get("identity") != self.identity:
                    return
                saved = {key: file.get_tensor(key).to(self.tables[0].device) for key in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError, ValueError):
            return
        self.log = [Round(**row) for row in about["rounds"]]
        self.losses = about["losses"]
        kept = sum(row.taken for row in self.log)
        self.tables += [saved[f"table.{i}"] for i in range(1, kept + 1)]
        self.spaces = [
            HarmfulSpace(saved[f"basis.{i}"], saved[f"null.{i}"], saved[f"strengths.{i}"]) for i in range(kept)
        ]


class _WithTable(Judge):
    """A judge that looks while image tokens are read from another table than the one that draws."""

    def __init__(self, judge: Judge, using: Callable[[], AbstractContextManager[None]]) -> None:
        self.judge, self.using = judge, using
        self.id, self.digest, self.threshold = judge.id, judge.digest, judge.threshold

    def look(self, images: Tensor) -> list[Judgement]:
        """As the judge."""
        with self.using():
            return self.judge.look(images)


def judge_of(model: ModelFamily, material: Material, params: SafeCB.Params) -> Judge | None:
    """Who looks at the images of the search; None where nobody can, which is enough for a single round.

    A model that judges itself is compared with the pinned judge.
    """
    if params.judge == "self" and "understanding" in model.provides:
        question = params.question or (material.questions.concept[0] if material.questions else None)
        if question is None:
            fix = "give params.question, or set params.judge to pinned"
            raise UsageError("safe_cb", "a question about the concept that the model can judge by", "none", fix)
        own = SelfJudge(model, question)
        return own if material.judge is None else Compared(own, material.judge)
    if material.judge is None and params.rounds > 1:
        fix = "give the material a judge, or set params.rounds to 1"
        raise UsageError("safe_cb", "somebody to judge what the edited model draws", "nobody", fix)
    return material.judge


COLUMNS = {
    "round": "number",
    "pairs drawn": "drawn",
    "pairs told apart": "pairs",
    "directions taken out": "dimension",
    "share of the difference in them": "captured",
    "rows changed": "rows_moved",
    "row in them before": "energy_before",
    "row in them after": "energy_after",
    "found before": "harmful_before",
    "found after": "harmful_after",
    "cannot tell after": "unclear_after",
    "moved (nats)": "drift",
    "first loss": "loss_first",
    "last loss": "loss_last",
    "kept": "taken",
}
"""Headings of the log → fields of `Round`."""


def log_of(rounds: Sequence[Round]) -> MethodLog:
    """The rounds as a table for the report."""
    counted = next((row.agreement for row in rounds if row.agreement), {})  # judges that can be compared, or none
    return MethodLog(
        title="The edit was found in rounds",
        columns=(*COLUMNS, *(f"agreement with the pinned judge: {name}" for name in counted)),
        rows=tuple(
            tuple(getattr(row, field) for field in COLUMNS.values())
            + tuple((row.agreement or {}).get(name) for name in counted)
            for row in rounds
        ),
        caption="“Found” and “cannot tell” are shares of images of training prompts under seeds of their own, as the "
        "search itself judged them; they are no evidence, and the section on erasure is. “Moved” is the divergence "
        "(KL) from the base model on preserved training images, per token.",
        figure="how much of each row of the image tokens' table lay in the directions that were taken out, before the "
        "edit and after each round",
    )


def _line(row: Round) -> str:
    """A round in the words of a progress line."""
    rates = "not judged"
    if row.harmful_before is not None and row.harmful_after is not None:
        rates = f"harmful {row.harmful_before:.3f} to {row.harmful_after:.3f}"
    undone = "" if row.taken else ", undone"
    return f"{rates}, {row.pairs} pairs, {row.dimension} directions, {row.rows_moved} rows moved{undone}"
