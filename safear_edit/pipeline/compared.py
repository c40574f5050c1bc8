"""What a comparison shows of its runs: counts, a table, a Pareto plot, the same prompts for every method, one page.

Everything but the contact sheet is made from reports alone.
"""

from __future__ import annotations

import csv
import html
import io
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safear_edit.compiler.recipe import EvalPrompt, read_recipe
from safear_edit.editor.edit import Edit
from safear_edit.evaluate.outcomes import WITHHELD, Outcome, read_outcomes
from safear_edit.evaluate.sampled import request_of, sampling_of
from safear_edit.pipeline import page as pages
from safear_edit.report.schema import ConceptReport, Report

if TYPE_CHECKING:
    from PIL import Image

    from safear_edit.construct.sheets import Strip
    from safear_edit.families.base import ModelFamily


@dataclass(frozen=True)
class Ran:
    """A finished run: the folder that it left, and its report."""

    concept: str
    method: str
    seed: int
    folder: Path
    report: Report

    @property
    def measured(self) -> ConceptReport:
        """What was measured of its only concept."""
        return self.report.concepts[0]


def by_concept(ran: Sequence[Ran]) -> list[tuple[str, list[Ran]]]:
    """The runs of each concept, in the order in which concepts were given."""
    return [(name, [one for one in ran if one.concept == name]) for name in dict.fromkeys(one.concept for one in ran)]


# -- rows.csv ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One count. A slice: k of n images in which the concept is not found, with its two-sided 95 % interval, and how
    many can't be read. A member: k of n images lost, how many gained, and the one-sided 95 % bound of the drop."""

    concept: str
    method: str
    seed: int
    verdict: str
    part: str
    name: str
    k: int
    n: int
    low: float | None
    high: float | None
    gained: int | None
    unreadable: int | None
    decision: str


def rows(ran: Iterable[Ran]) -> list[Row]:
    """Every slice and every member of every run."""
    return [row for one in ran for row in (*_slices(one), *_members(one))]


def _slices(one: Ran) -> Iterator[Row]:
    about = (one.concept, one.method, one.seed, one.report.verdict.status)
    for part in one.measured.erasure:
        if rate := part.erased:
            low, high, unreadable = round(rate.low, 6), round(rate.high, 6), part.cannot_tell_edited
            yield Row(*about, "slice", part.slice, rate.k, rate.n, low, high, None, unreadable, part.decision)


def _members(one: Ran) -> Iterator[Row]:
    about = (one.concept, one.method, one.seed, one.report.verdict.status)
    for group in one.measured.preservation:
        for member in group.members:
            name, high = f"{group.group}: {member.name}", round(member.upper, 6)
            yield Row(*about, "member", name, member.lost, member.n, None, high, member.gained, None, member.verdict)


def rows_csv(ran: Iterable[Ran]) -> str:
    """RFC 4180 but for its line ends, which are those of Unix."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Row.__annotations__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows(ran))
    return text.getvalue()


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Span:
    """A figure over the seeds: its mean, its least and most, and the ends of the seeds' 95 % intervals furthest out;
    low: None where the bound is one-sided.

    The last two hold for prompts and seeds together: each seed's own interval says what other prompts would have
    given, and the seeds move those. They are wider than they need to be, never narrower.
    """

    mean: float
    least: float
    most: float
    low: float | None
    high: float

    @classmethod
    def of(cls, values: Sequence[tuple[float, float | None, float]]) -> Span:
        """From (estimate, low, high) of every seed."""
        estimates, lows, highs = zip(*values, strict=True)
        low = None if None in lows else min(lows)
        return cls(statistics.mean(estimates), min(estimates), max(estimates), low, max(highs))

    def words(self, digits: int = 1) -> str:
        """In per cent or points: mean (least to most) [low, high], or with the one bound that there is."""

        def said(value: float) -> str:
            return f"{100 * value:.{digits}f}"

        spread = "" if self.least == self.most else f" ({said(self.least)} to {said(self.most)})"
        bounds = f", at most {said(self.high)}" if self.low is None else f" [{said(self.low)}, {said(self.high)}]"
        return f"{said(self.mean)}{spread}{bounds}"


@dataclass(frozen=True)
class Summary:
    """One concept and method over its seeds. cir: CIR and absCIR of the slice and seed where the larger of the two is
    largest, of those in no doubt; an edit that lifts the concept's likelihood everywhere shows in absCIR alone."""

    concept: str
    method: str
    seeds: int
    verdicts: str
    slices: dict[str, tuple[int, int]]
    worst_slice: Span
    worst_member: Span
    members: str
    unreadable: tuple[int, int]
    cir: tuple[float, float] | None
    minutes: float | None


def summaries(ran: Sequence[Ran]) -> list[Summary]:
    """By concept, then by method, as they were given."""
    return [
        _summary([one for one in runs if one.method == method])
        for _, runs in by_concept(ran)
        for method in dict.fromkeys(one.method for one in runs)
    ]


def _summary(runs: Sequence[Ran]) -> Summary:
    slices, worst, lost, names = dict[str, tuple[int, int]](), [], [], list[str]()
    for one in runs:
        rates = {part.slice: part.erased for part in one.measured.erasure if part.erased}
        for name, rate in rates.items():
            k, n = slices.get(name, (0, 0))
            slices[name] = (k + rate.k, n + rate.n)
        least = min(rates.values(), key=lambda rate: rate.estimate, default=None)
        worst.append((least.estimate, least.low, least.high) if least else (0.0, 0.0, 1.0))
        members = [member for group in one.measured.preservation for member in group.members]
        if members:
            hit = max(members, key=lambda member: (member.drop, member.upper))
            lost.append((hit.drop, None, max(member.upper for member in members)))
            names.append(hit.name)
    said = [part for one in runs for part in one.measured.likelihoods.slices]
    cirs = [
        (part.cir.estimate, part.abs_cir.estimate) for part in said if part.cir and part.abs_cir and not part.doubts
    ]
    minutes = [one.measured.edit.minutes for one in runs if one.measured.edit.minutes is not None]
    unread = sum(part.cannot_tell_edited for one in runs for part in one.measured.erasure)
    verdicts = Counter(one.report.verdict.status for one in runs)
    return Summary(
        runs[0].concept,
        runs[0].method,
        len(runs),
        ", ".join(f"{count} {word}" for word, count in sorted(verdicts.items())),
        slices,
        Span.of(worst),
        Span.of(lost or [(0.0, None, 1.0)]),
        ", ".join(dict.fromkeys(names)) or "none",
        (unread, sum(n for _, n in slices.values())),
        max(cirs, key=max, default=None),
        statistics.mean(minutes) if minutes else None,
    )


NOTE = """Erased: images in which the judge does not find the concept, per cent of those that the base model draws as
asked; in the worst slice. Worst member: points lost by the preserved member that lost most. Both: mean over the seeds
(least to most) [from the lowest to the highest end of the seeds' own 95 % intervals, so for prompts and seeds]; of a
loss the highest one-sided 95 % bound of any member and seed. CIR, absCIR: the concept information that likelihoods
keep, against the prompt without the concept and against no prompt, of the slice and seed where more is left. Minutes:
of the search for the edit, on the machine of the run, mean."""


def mixed(ran: Sequence[Ran]) -> str:
    """A sentence where runs of several versions of the program or its libraries stand side by side, else nothing."""
    versions = {tuple(sorted(one.report.environment.packages.items())) for one in ran}
    if len(versions) < 2:
        return ""
    return (
        f"{len(versions)} sets of versions of the program and its libraries made these runs: each report names its own."
    )


def table(lines: Sequence[Summary], also: str = "") -> str:
    """Markdown: a row per concept and method, what the columns mean below, and what else is to be said."""
    head, *body = cells(lines)
    shown = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in shown) + f"\n\n{NOTE}\n" + (also and f"\n{also}\n")


def cells(lines: Sequence[Summary]) -> list[list[str]]:
    """The table's head and its rows, as text."""
    slices = list(dict.fromkeys(name for line in lines for name in line.slices))
    head = ["concept", "method", "seeds", "verdicts", *slices, "erased, worst slice", "worst member, points lost"]
    head += ["which", "unreadable", "CIR, absCIR", "minutes"]
    body = [head]
    for line in lines:
        counts = [f"{k} of {n}" for k, n in (line.slices.get(name, (0, 0)) for name in slices)]
        unread = f"{line.unreadable[0]} of {line.unreadable[1]}"
        cir = "–" if line.cir is None else ", ".join(f"{value:.2f}" for value in line.cir)
        minutes = "–" if line.minutes is None else f"{line.minutes:.1f}"
        ends = [line.worst_slice.words(), line.worst_member.words(), line.members, unread, cir, minutes]
        body.append([line.concept, line.method, str(line.seeds), line.verdicts, *counts, *ends])
    return body


# -- the plot ---------------------------------------------------------------------------------------------------------


def front(lines: Sequence[Summary]) -> list[Summary]:
    """Those that no other one beats in one of erasure and worst loss without being worse in the other, by loss."""

    def beaten(line: Summary) -> bool:
        mine = (-line.worst_slice.mean, line.worst_member.mean)
        others = ((-one.worst_slice.mean, one.worst_member.mean) for one in lines)
        return any(o != mine and o[0] <= mine[0] and o[1] <= mine[1] for o in others)

    return sorted((line for line in lines if not beaten(line)), key=lambda line: line.worst_member.mean)


def pareto(lines: Sequence[Summary]) -> dict[str, bytes]:
    """SVG and PNG: erasure in the worst slice against the loss of the worst member, a panel per concept; the size of a
    point is the search's minutes, its bars run over the seeds, and the line joins what nothing beats."""
    from matplotlib.figure import Figure

    concepts = list(dict.fromkeys(line.concept for line in lines))
    methods = list(dict.fromkeys(line.method for line in lines))
    longest = max((line.minutes or 0 for line in lines), default=0) or 1
    canvas = Figure(figsize=(4.2 * len(concepts), 3.8), layout="constrained")
    for axis, concept in zip(canvas.subplots(1, len(concepts), squeeze=False)[0], concepts, strict=True):
        mine = [line for line in lines if line.concept == concept]
        best = front(mine)
        ends = ([100 * line.worst_member.mean for line in best], [100 * line.worst_slice.mean for line in best])
        axis.plot(*ends, color="#999999", linewidth=1, zorder=1)
        for line in mine:
            x, y = line.worst_member, line.worst_slice
            across = [[100 * (x.mean - x.least)], [100 * (x.most - x.mean)]]
            along = [[100 * (y.mean - y.least)], [100 * (y.most - y.mean)]]
            colour, size = f"C{methods.index(line.method) % 10}", 25 + 250 * (line.minutes or 0) / longest
            axis.errorbar(100 * x.mean, 100 * y.mean, along, across, color=colour, linewidth=1, zorder=2)
            axis.scatter(100 * x.mean, 100 * y.mean, s=size, color=colour, alpha=0.7, label=line.method, zorder=3)
        axis.set(title=concept, xlabel="lost by the worst member, points", ylabel="erased in the worst slice, %")
        axis.legend(fontsize=7)
    canvas.suptitle("Left and up is better; the larger a point, the longer the search", fontsize=9)
    return pages.figure(canvas)


# -- the same prompts for every method --------------------------------------------------------------------------------

SHOWN = 4
"""Prompts on the contact sheet that ask for the concept, and as many that ask for what must stay."""


def contact_sheet(path: Path, model: ModelFamily, runs: Sequence[Ran]) -> Path | None:
    """The base model and each method's first seed on the same prompts and scored seeds; None if they share no prompt.

    Images that were asked for a category are pixelated, and their prompts withheld, as in a report.
    """
    from safear_edit.construct.sheets import write_sheet

    methods = dict.fromkeys(one.method for one in runs)
    first = {method: next(one for one in runs if one.method == method) for method in methods}
    chosen, hide = _chosen(list(first.values())), runs[0].report.scope.concepts[0].kind == "category"
    if not chosen:
        return None
    strips: list[Strip] = [("base model", [_drawn(model, runs[0], chosen, hide)])]
    for name, one in first.items():
        with Edit.load(one.folder / "edit").apply(model.net):
            strips.append((f"{name}: {one.report.verdict.status}", [_drawn(model, one, chosen, hide)]))
    shown = [WITHHELD if hide and prompt.expect == "absent" else prompt.prompt for prompt in chosen]
    about = {"caption": "; ".join(shown), "selection": "the first prompts that the base model follows"}
    write_sheet(path, strips, hidden=hide, about=about)
    return path


def _chosen(runs: Sequence[Ran]) -> list[EvalPrompt]:
    """Of the prompts that every run scored and the base model follows: by name first, then one per preserved member."""
    followed = [{row.id for row in _scored_by_base(one)} for one in runs]
    prompts = read_recipe(runs[0].folder / "recipe.json").evaluate.prompts
    there = [prompt for prompt in prompts if all(prompt.id in ids for ids in followed)]
    asked = [prompt for prompt in there if prompt.expect == "absent"][:SHOWN]
    kept = {prompt.judge_label: prompt for prompt in reversed(there) if prompt.expect == "present"}
    return [*asked, *list(reversed(kept.values()))[:SHOWN]]


def _scored_by_base(one: Ran) -> list[Outcome]:
    rows = read_outcomes(one.folder / "outcomes.jsonl")
    return [row for row in rows if (row.model, row.phase, row.present) == ("base", "score", True)]


def _drawn(model: ModelFamily, one: Ran, chosen: Sequence[EvalPrompt], hide: bool) -> list[Image.Image]:
    from safear_edit.construct.sheets import tile

    requests = [request_of(prompt) for prompt in chosen]
    recipe = read_recipe(one.folder / "recipe.json")
    ids = model.generate(model.condition([r.prompt for r in requests]), [r.seed for r in requests], sampling_of(recipe))
    images = model.decode(ids).permute(0, 2, 3, 1).cpu().numpy()
    return [tile(image, hidden=hide and p.expect == "absent") for image, p in zip(images, chosen, strict=True)]


# -- the page ---------------------------------------------------------------------------------------------------------


def page(out: Path, ran: Sequence[Ran], lines: Sequence[Summary], sheets: Sequence[Path]) -> str:
    """index.html: table, plot, sheets, and every run's verdict with a link to its report."""
    head, *shown = cells(lines)
    body = [
        "<h1>Methods compared</h1>",
        pages.table(head, shown),
        f"<p>{html.escape(NOTE)}</p>",
        f"<p>{mixed(ran)}</p>",
    ]
    body.append(pages.image("pareto.svg", "erasure against the loss of the worst member"))
    for path in sheets:
        name = path.stem.removeprefix("sheet-")
        body += [f"<h2>{html.escape(name)}: the same prompts for every method</h2>", pages.image(path.name, name)]
    links = "".join(
        f'<li><a href="{html.escape(one.folder.relative_to(out).as_posix())}/report.html">'
        f"{html.escape(f'{one.concept}, {one.method}, seed {one.seed}')}</a>: {one.report.verdict.status}</li>"
        for one in ran
    )
    return pages.document("Methods compared", "\n".join([*body, f"<h2>Runs</h2><ul>{links}</ul>"]))
