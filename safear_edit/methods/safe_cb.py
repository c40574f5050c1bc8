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
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from safear_edit.compiler.cost import Work
from safear_edit.compiler.recipe import Card
from safear_edit.construct.pairs import Material
from safear_edit.editor.edit import Edit
from safear_edit.editor.edit_record import EditInfo, Round
from safear_edit.editor.fine_tune import borrowed, identity_of
from safear_edit.editor.method_log import MethodLog
from safear_edit.errors import UsageError
from safear_edit.files.weights import write_weights
from safear_edit.judges.base import Judge, Judgement
from safear_edit.judges.draw import BATCH, ImageRequest, JudgedImage, draw_and_judge
from safear_edit.judges.self_judge import Compared, SelfJudge
from safear_edit.methods.codebook import HarmfulSpace, Null, Reading, Usage, energy_figure, harmful_space, protecting
from safear_edit.methods.table_repair import Lessons, Repair, repaired
from safear_edit.methods.workbench import token_kl
from safear_edit.progress import Callback
from safear_edit.registry import method

if TYPE_CHECKING:
    from safear_edit.families.base import ModelFamily


MOVED = 0.01
"""A row counts as moved if its change is longer than this share of its length."""
HELD_OUT = 0.25
"""Share of the pairs, at most, whose prompts no round learns from: the probe asks for these."""


@method("safe_cb", paper="https://arxiv.org/abs/2606.27147", needs=frozenset({"codebook"}))
class SafeCB:
    """Erase in the codebook: project the harmful space out of the image tokens' table, repair it, and repeat."""

    class Params(Repair):
        """The paper's numbers, where it gives them; recipes/safe_cb.yaml says what ours are for."""

        directions: int = Field(8, ge=1, description="k, dimensions of a round's harmful space (paper: 8 of 2048)")
        strength: float = Field(1.0, ge=0, le=1, description="lambda: how much of the harmful part goes (paper: 1)")
        reading: Reading = Field("position", description="position: as the paper; pooled: deaf to the layout")
        metric: Literal["plain", "usage"] = Field(
            "plain",
            description="what differences are measured in; plain: as the paper; usage: units of what safe and "
            "preserved images do with the table, which the projection then moves least",
        )
        null_space: Null = Field("exact", description="where the repair may write: see codebook_map.harmful_space")
        protect: bool = Field(True, description="what earlier rounds took out stays out, also of the repair")
        safe: Literal["base", "current"] = Field(
            "base", description="who draws the safe images of later rounds: the base model, or the edited one"
        )
        rounds: int = Field(5, ge=1, description="at most (paper: saturates after 3 of 5)")
        pairs: int = Field(
            100,
            ge=1,
            description="of a round; later rounds take the next ones, and begin anew after the last (paper: 100)",
        )
        least_gain: float = Field(
            0.01,
            gt=0,
            description="a later round that gains less is undone and the last: share of the probe that is readable "
            "without the concept, less the drift of preserved images in nats per token",
        )
        margin: float = Field(
            0.05, ge=0, description="a later round that makes a larger share of the probe unreadable is undone, too"
        )
        probe: int = Field(
            100, ge=1, description="images of training prompts that no round learns from, to decide that"
        )
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
        each = min(params.pairs, pairs)
        drawn = 2 * each * (params.rounds - 1) + params.probe * (params.rounds + 1)
        steps = params.rounds * params.epochs * -(-each // params.batch)
        return Work(steps, params.batch + kept, kept, drawn=drawn)

    def trainable(self, params: SafeCB.Params, model: ModelFamily) -> int:
        """The image tokens' table."""
        return model.image_table().numel()


@dataclass(frozen=True)
class Sample:
    """Images of `drawn` pairs, those whose safe image is without the concept: tokens (n, N) with the concept asked for
    and without, and which pairs of the material they are; present: what the judge says of each unsafe image."""

    unsafe: Tensor
    safe: Tensor
    rows: list[int]
    present: list[bool | None]
    drawn: int

    @property
    def harmful(self) -> list[int]:
        """Those in whose unsafe image the concept is found."""
        return [i for i, present in enumerate(self.present) if present]

    def of(self, which: list[int]) -> Sample:
        """Some of them."""
        rows, present = [self.rows[i] for i in which], [self.present[i] for i in which]
        return Sample(self.unsafe[which], self.safe[which], rows, present, self.drawn)


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
        count = len(material.pairs)
        held_out = min(params.probe, int(HELD_OUT * count), max(0, count - params.fewest)) if self.judge else 0
        self.learnt = count - held_out  # pairs from here on are the probe's
        self.tables, self.spaces, self.log, self.losses = [table], list[HarmfulSpace](), list[Round](), list[float]()
        pairs = material.pairs
        about = [model.card.digest, params.model_dump(mode="json"), seed, pairs.unsafe, pairs.safe, table]
        kept = [material.keep.prompts, material.keep.ids] if material.keep else []
        judges = [judge.id for judge in (self.judge, material.judge) if judge]
        self.identity = identity_of("safe_cb", *about, pairs.unsafe_ids, pairs.safe_ids, *kept, *judges)

    def run(self) -> None:
        """Rounds until one gains less than `least_gain`, too little is left to learn from, or they run out."""
        self._resume()
        while len(self.log) < self.params.rounds and not self._finished():
            sample = self._sample(len(self.log) + 1)
            if self.log and self._left(sample) < self.params.fewest:
                break
            self._round(sample)
            self._save()

    def _finished(self) -> bool:
        if not self.log:
            return False
        last = self.log[-1]
        return not last.taken or (last.harmful_after == 0 and (not self._on_policy or last.unclear_after == 0))

    @property
    def _on_policy(self) -> bool:
        """Whether a round also learns from images that are neither harmful nor as they should be: a switch does, from
        whatever beginning the edited model makes."""
        return self.params.repair == "switch"

    @property
    def _fewest(self) -> int:
        """Pairs that a space is found from: pooled over positions, k directions need as many."""
        params = self.params
        return max(params.fewest, params.directions if params.reading == "pooled" else 0)

    def _left(self, sample: Sample) -> int:
        """Images that a later round is for."""
        return sum(present is not False for present in sample.present) if self._on_policy else len(sample.harmful)

    def _taken(self, now: Round) -> bool:
        """Whether a round is kept: the first always, for without it nothing is edited."""
        if not self.log or now.harmful_after is None or now.unclear_after is None:
            return True
        last = self.log[-1]
        assert last.unclear_after is not None
        broken = now.unclear_after - last.unclear_after > self.params.margin
        return not broken and _worth(now) - _worth(last) >= self.params.least_gain

    def _round(self, sample: Sample) -> None:
        number, before, params = len(self.log) + 1, self.tables[-1], self.params
        harmful = sample.of(sample.harmful)
        found = self._space(harmful) if not self.log or len(harmful.rows) >= self._fewest else None
        taken_out = [*self.spaces, *([found] if found else [])]
        space = protecting(taken_out[-1], taken_out[:-1]) if params.protect else taken_out[-1]
        cleaned = space.without(before, params.strength) if found else before
        change, losses = self._repaired(cleaned, space, sample if self._on_policy else harmful, number)
        after = cleaned + change
        rate_before = self.log[-1].harmful_after if self.log else self._probe(before)[0]
        rate, unclear = self._probe(after)
        agreement = self.judge.agreement if isinstance(self.judge, Compared) else None
        moved = (after - before).norm(dim=1) > MOVED * before.norm(dim=1)
        row = Round(
            number=number,
            drawn=sample.drawn,
            pairs=len(harmful.rows),
            dimension=space.basis.shape[1],
            captured=found.captured if found else 0.0,
            rows_moved=int(moved.sum()),
            energy_before=float((found or space).energy(before).mean()),
            energy_after=float((found or space).energy(after).mean()),
            harmful_before=rate_before,
            harmful_after=rate,
            unclear_after=unclear,
            drift=self._drift(after),
            loss_first=losses[0] if losses else None,
            loss_last=losses[-1] if losses else None,
            taken=True,
            agreement=agreement.as_json() if agreement else None,
        )
        row = row.model_copy(update={"taken": self._taken(row)})
        self.log.append(row)
        if row.taken:
            self.tables.append(after)
            self.spaces = taken_out
            self.losses += losses
        self.progress("rounds", number, params.rounds, _line(row))

    def _space(self, sample: Sample) -> HarmfulSpace:
        """The harmful space of this round's pairs in the table as it is, in the recipe's metric."""
        table, params, keep = self.tables[-1], self.params, self.material.keep
        usage = None
        if params.metric == "usage":
            used = [sample.safe, *([keep.ids] if keep else [])]
            usage = Usage.of(torch.cat([table[ids].flatten(0, 1) for ids in used]))
        unsafe, safe = table[sample.unsafe], table[sample.safe]
        return harmful_space(unsafe, safe, params.directions, params.reading, params.null_space, usage)

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
        judge, hands = self.judge, None
        if isinstance(judge, SelfJudge | Compared):  # it turns the table of the model that draws: one after the other
            judge, hands = _WithTable(judge, partial(self._using, self.tables[0])), 1
        requests = [ImageRequest(prompt, seed, "concept") for prompt, seed in zip(prompts, seeds, strict=True)]
        drawn = partial(draw_and_judge, self.model, requests, {"concept": judge}, None, hands=hands)
        with self._using(table):
            return list(drawn(progress=self.progress, stage=stage))

    def _seeds(self, what: str, rows: Sequence[int]) -> list[int]:
        """Image seeds that no other image of the program has, for pairs of the material; `what` names the draw."""
        words = (f"safe_cb|{what}|{self.seed}|{self.material.pairs.seeds[row]}" for row in rows)
        return [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8]) >> 1 for word in words]

    @torch.no_grad()
    def _present(self, ids: Tensor) -> list[bool | None]:
        """What the judge says of images that are there already."""
        assert self.judge is not None
        return [
            judgement.present for part in ids.split(BATCH) for judgement in self.judge.look(self.model.decode(part))
        ]

    def _sample(self, number: int) -> Sample:
        """This round's pairs: the next prompts. What the base model drew for them is the material's, which the pinned
        judge has already told apart; what an edited one draws is drawn now."""
        count = min(self.params.pairs, self.learnt)
        which = [((number - 1) * count + i) % self.learnt for i in range(count)]
        if isinstance(self.judge, Compared):
            self.judge.agreement = None
        if number > 1:
            unsafe, safe, present = self._fresh(number, which)
        else:
            unsafe, safe = self.material.pairs.unsafe_ids[which], self.material.pairs.safe_ids[which]
            if self.judge is None or self.judge is self.material.judge:
                return Sample(unsafe, safe, which, [True] * count, count)
            present = self._present(torch.cat([unsafe, safe]))
        drawn = Sample(unsafe, safe, which, present[:count], count)
        sample = drawn.of([i for i, judged in enumerate(present[count:]) if judged is False])
        if number == 1 and len(sample.harmful) < self._fewest:
            got = f"{len(sample.harmful)} of {count}"
            fix = "ask another params.question, or set params.judge to pinned"
            raise UsageError("safe_cb", f"{self._fewest} pairs that the model tells apart", got, fix)
        return sample

    def _fresh(self, number: int, which: Sequence[int]) -> tuple[Tensor, Tensor, list[bool | None]]:
        """Unsafe and safe images, (n, N) each, of these pairs in round `number`, and what the judge says of all; both
        of a pair share a seed."""
        pairs, table = self.material.pairs, self.tables[-1]
        seeds = self._seeds(f"round|{number}", which)
        drawer = table if self.params.safe == "current" else self.tables[0]
        drawn = self._drawn(table, [pairs.unsafe[i] for i in which], seeds, f"round {number}, unsafe")
        drawn += self._drawn(drawer, [pairs.safe[i] for i in which], seeds, f"round {number}, safe")
        unsafe, safe = torch.stack([image.ids for image in drawn]).split(len(which))
        return unsafe, safe, [image.judgement.present for image in drawn]

    def _probe(self, table: Tensor) -> tuple[float | None, float | None]:
        """Share of the probe's images in which the judge finds the concept, and share that it can't tell: the prompts
        that no round learns from in turn (all, where pairs are too few to hold some out), the same seeds each time."""
        if self.judge is None:
            return None, None
        pairs = self.material.pairs
        first = self.learnt if self.learnt < len(pairs) else 0
        which = [first + i % (len(pairs) - first) for i in range(self.params.probe)]
        seeds = [self._seeds(f"probe|{i}", [row])[0] for i, row in enumerate(which)]
        drawn = self._drawn(table, [pairs.unsafe[i] for i in which], seeds, f"probe {len(self.log)}")
        found = [image.judgement.present for image in drawn]
        return sum(p is True for p in found) / len(found), sum(p is None for p in found) / len(found)

    @torch.no_grad()
    def _drift(self, table: Tensor) -> float | None:
        keep, total = self.material.keep, 0.0
        if keep is None:
            return None
        captions = self.model.condition(keep.prompts)
        for rows in torch.arange(len(keep)).split(self.model.read_together(BATCH // 2)):
            condition, ids = captions.rows(rows), keep.ids[rows].to(self.model.device)
            reference = self.model.logits(condition, ids)
            with self._using(table):
                total += float(token_kl(reference, self.model.logits(condition, ids)).mean()) * len(rows)
        return total / len(keep)

    # -- the repair --

    def _repaired(
        self, cleaned: Tensor, space: HarmfulSpace, sample: Sample, number: int
    ) -> tuple[Tensor, list[float]]:
        """Delta Q and its losses. The paper's lesson is taught by the safe images of all pairs that are learnt from
        where the base model draws them, and by this round's where the edited one does; a switch by this round's."""
        params, pairs = self.params, self.material.pairs
        switch = params.repair == "switch"
        if params.safe == "base" and not switch:
            which, images = list(range(self.learnt)), pairs.safe_ids[: self.learnt]
        else:
            which, images = sample.rows, sample.safe
        with torch.no_grad():
            captions = self.model.condition([(pairs.unsafe if switch else pairs.safe)[i] for i in which])
        lessons, keep = Lessons(captions, images, sample.unsafe if switch else None), self.material.keep
        return repaired(self.model, cleaned, space, lessons, keep, params, self._using,
                        seed=self.seed, number=number, progress=self.progress)  # fmt: skip

    # -- files --

    def _save(self) -> None:
        """The state after a whole round."""
        if self.checkpoint is None:
            return
        tensors = {f"table.{i}": table for i, table in enumerate(self.tables)}
        for i, space in enumerate(self.spaces):
            tensors |= {f"basis.{i}": space.basis, f"null.{i}": space.null, f"strengths.{i}": space.strengths}
            if space.usage is not None:
                tensors |= {f"mean.{i}": space.usage.mean, f"covariance.{i}": space.usage.covariance}
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
        self.tables += [saved[f"table.{i}"] for i in range(1, sum(row.taken for row in self.log) + 1)]
        for i in range(sum(key.startswith("basis.") for key in saved)):
            usage = Usage(saved[f"mean.{i}"], saved[f"covariance.{i}"]) if f"mean.{i}" in saved else None
            self.spaces.append(HarmfulSpace(saved[f"basis.{i}"], saved[f"null.{i}"], saved[f"strengths.{i}"], usage))


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
        caption="“Found” and “cannot tell” are shares of images of training prompts that no round learned from, as the "
        "search itself judged them; they are no evidence, and the section on erasure is. “Moved” is the divergence "
        "(KL) from the base model on preserved training images, per token. A later round is undone if it breaks more "
        "images than it may, or gains too little: images that are readable without the concept, less what it moved.",
        figure="how much of each row of the image tokens' table lay in the directions that were taken out, before the "
        "edit and after each round",
    )


def _worth(row: Round) -> float:
    """Share of the probe's images that are readable without the concept, less the drift of preserved ones."""
    assert row.harmful_after is not None and row.unclear_after is not None
    return 1 - row.harmful_after - row.unclear_after - (row.drift or 0.0)


def _line(row: Round) -> str:
    """A round in the words of a progress line."""
    rates = "not judged"
    if row.harmful_before is not None and row.harmful_after is not None:
        rates = f"harmful {row.harmful_before:.3f} to {row.harmful_after:.3f}, unreadable {row.unclear_after or 0:.3f}"
    undone = "" if row.taken else ", undone"
    return f"{rates}, {row.pairs} pairs, {row.dimension} directions, {row.rows_moved} rows moved{undone}"
