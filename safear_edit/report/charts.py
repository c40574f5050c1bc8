"""The charts of the page: SVG with text as text, named for those who can't see it, the same bytes for the same report.

Each is narrow enough to be read on a phone. Colours are variables of the page, so that it can be dark; markers, fills
and line styles say the same as colours do.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from safear_edit.attacks.counts import Count
from safear_edit.attacks.curve import LEVEL, Curve
from safear_edit.report.schema import ConceptReport, LikelihoodSlice

BASE, EDITED, INK, GRID, PAGE = "#8b93a1", "#1d4f91", "#1c2430", "#e3e7ed", "#ffffff"
VARIABLES = {BASE: "--base", EDITED: "--edited", INK: "--ink", GRID: "--line", PAGE: "--page"}
WIDTH = 4.9
"""Inches; a page shows them at their size, a phone at three quarters of it."""
STYLE: dict[Any, Any] = {  # matplotlib types the keys as some 300 literals
    "svg.hashsalt": "safear-edit",  # ids in the drawing come from this instead of from chance
    "svg.fonttype": "none",  # text stays text: selectable, and drawn in the page's font
    "text.parse_math": False,  # a concept's name may hold a dollar sign
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}
SQUARE: dict[str, Any] = {"marker": "s", "color": EDITED, "ms": 5.5, "ls": "none"}

STRICT: dict[str, Any] = {**SQUARE, "marker": "D", "mfc": "none"}


def charts(concept: ConceptReport) -> tuple[str, ...]:
    """Erasure and preserved groups, each against its bounds."""
    drawn = [erasure_chart(concept)]
    return (*drawn, groups_chart(concept)) if any(group.change for group in concept.preservation) else tuple(drawn)


def erasure_chart(concept: ConceptReport) -> str:
    """By slice, the share without a find: observed with its two-sided interval, and what is asked for.

    Open diamond: the same with unreadable images counted as finds.
    """
    rows = [part for part in concept.erasure if part.erased]
    with rc_context(STYLE):
        figure, axes = _figure(len(rows))
        lowest = min((part.erased.low for part in rows if part.erased), default=0.8)
        for place, part in enumerate(reversed(rows)):
            erased, strict = part.erased, part.erased_strict
            assert erased is not None
            axes.plot([100 * erased.low, 100 * erased.high], [place] * 2, color=EDITED, lw=1.9)
            if strict is not None and strict.k != erased.k:
                axes.plot(100 * strict.estimate, place, **STRICT)
                lowest = min(lowest, strict.estimate)
            axes.plot(100 * erased.estimate, place, **SQUARE)
            for gate, dashes in ((part.needed, "solid"), (part.floor, "dotted")):
                axes.plot([100 * gate] * 2, [place - 0.36, place + 0.36], color=INK, lw=1.3, ls=dashes)
        axes.set_xlim(100 * min(0.8, max(0.0, lowest - 0.03)), 100.6)
        _names(axes, [part.slice for part in rows])
        _title(axes, f"{concept.concept} not found, % of images", rows=len(rows))
        axes.plot([], [], label="edited model, 95 % interval", **SQUARE)
        axes.plot([], [], label="unreadable counted as found", **STRICT)
        axes.plot([], [], color=INK, lw=1.3, label="needed, observed")
        axes.plot([], [], color=INK, lw=1.3, ls="dotted", label="needed, lower bound")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return _svg(figure, f"share of images without {concept.concept} by slice, against what is needed")


def groups_chart(concept: ConceptReport) -> str:
    """The drop of each preserved group between its one-sided bounds, against the margins."""
    rows = [group for group in concept.preservation if group.change]
    with rc_context(STYLE):
        figure, axes = _figure(len(rows))
        for place, group in enumerate(reversed(rows)):
            change = group.change
            assert change is not None
            _drop(axes, place, change.drop, change.lower95, group.upper or change.upper95, bad=group.decision != "PASS")
        _margins(axes, concept, "preserve_drop", "preserve_upper")
        _names(axes, [group.group for group in rows])
        _title(axes, "Drop of each group in points, one-sided 95 % bounds", rows=len(rows))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return _svg(figure, f"drop of each preserved group for {concept.name}, against the margins")


def member_chart(concept: ConceptReport) -> str:
    """Every member's drop with its one-sided upper bound against the margins, worst first in its group; "" without."""
    groups = [group for group in concept.preservation if group.members]
    rows = [(group.group, one) for group in groups for one in group.members]
    if not rows:
        return ""
    with rc_context(STYLE):
        figure, axes = _figure(len(rows), each=0.22)
        for place, (_, one) in enumerate(reversed(rows)):
            _drop(axes, place, one.drop, one.drop, one.upper, bad=one.verdict != "PASS")
        _margins(axes, concept, "member_drop", "member_upper")
        _names(axes, [one.name for _, one in rows])
        end = len(rows)
        for group in groups:  # a line under each group, and its name at the right
            end -= len(group.members)
            axes.text(1.0, end - 0.5, f"{group.group} ", ha="right", va="bottom", fontsize=8, style="italic",
                      transform=axes.get_yaxis_transform())  # fmt: skip
            if end:
                axes.axhline(end - 0.5, color=GRID, lw=1)
        _title(axes, "Drop of each member in points, bar to the upper bound", rows=len(rows))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return _svg(figure, f"drop of each preserved member for {concept.name}, against the margins")


def depth_chart(concept: ConceptReport) -> str:
    """By row or scale, what the prompt tells the base model and what is left in the edited one; "" where unknown."""
    told = [part for part in concept.likelihoods.slices if not part.doubts and len(part.decided) > 1]
    if not told:
        return ""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 1.15 * len(told)), layout="constrained")
        panels = figure.subplots(len(told), 1, squeeze=False, sharex=True)[:, 0]
        for axes, part in zip(panels, told, strict=True):
            _depths(axes, part)
        panels[-1].set_xlabel(f"{concept.likelihoods.block} of the image's tokens", fontsize=8.5)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False,
                      fontsize=8)  # fmt: skip
        return _svg(figure, f"information about {concept.concept} by {concept.likelihoods.block}, base and edited")


def _depths(axes: Axes, part: LikelihoodSlice) -> None:
    places = range(1, len(part.decided) + 1)
    base = [100 * (share or 0.0) for share in part.decided]
    left = [100 * (share or 0.0) * (kept or 0.0) for share, kept in zip(part.decided, part.profile, strict=True)]
    axes.bar(places, base, width=0.8, fill=False, edgecolor=BASE, lw=1.2, label="base model")
    axes.bar(places, left, width=0.5, color=EDITED, label="edited model")
    axes.set_xticks([*places])
    _plain(axes, f"{part.slice}, % of what the prompt tells the base model", "y")


def durability_chart(curves: Sequence[Curve]) -> str:
    """How much comes back for how many steps, a panel for each way of learning: the erased concept beside a style that
    the model never knew, with 95 % intervals; dotted: where a concept counts as back."""
    with rc_context(STYLE):
        return _svg(_durability(curves), "share of images that show the concept again, by steps of learning")


def durability_image(curves: Sequence[Curve]) -> bytes:
    """The same as PNG, for the folder of an attack."""
    written = io.BytesIO()
    with rc_context(STYLE):
        _durability(curves).savefig(written, format="png", dpi=120, metadata={"Software": ""})
    return written.getvalue()


def _durability(curves: Sequence[Curve]) -> Figure:
    figure = Figure(figsize=(WIDTH, 0.9 + 1.35 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 1, squeeze=False, sharex=True)[:, 0]
    for axes, one in zip(panels, curves, strict=True):
        _comes_back(axes, one)
    panels[-1].set_xlabel("steps of learning", fontsize=8.5)
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _comes_back(axes: Axes, one: Curve) -> None:
    erased = {mark.steps: mark.edited for mark in one.marks}
    taught = {mark.steps: mark.control for mark in one.marks if mark.control}
    ways: tuple[tuple[dict[int, Count], str, dict[str, Any]], ...] = (
        (taught, "a style that it never knew", {"color": BASE, "marker": "o", "mfc": PAGE, "ls": "--"}),
        (erased, "the erased concept", {"color": EDITED, "marker": "s", "ls": "-"}),
    )
    for counts, name, look in ways:
        for steps, count in counts.items():
            axes.plot([steps] * 2, [100 * end for end in count.interval()], color=look["color"], lw=1)
        axes.plot([*counts], [100 * count.found / count.n for count in counts.values()], ms=4.5, lw=1.4, label=name,
                  **look)  # fmt: skip
    axes.axhline(100 * LEVEL, color=INK, lw=1, ls=":")
    axes.set_ylim(-4, 104)
    _plain(axes, f"{one.name}, % of images", "y")


def overview_chart(concepts: Sequence[ConceptReport]) -> str:
    """Of several concepts, one row each: the smallest lower bound of erasure; "" for one concept."""
    rows = [(one, min(part.lower or 0.0 for part in one.erasure)) for one in concepts]
    if len(rows) < 2:
        return ""
    with rc_context(STYLE):
        figure, axes = _figure(len(rows))
        for place, (concept, low) in enumerate(reversed(rows)):
            floor = concept.erasure[0].floor
            axes.plot([100 * low, 100], [place] * 2, color=EDITED, lw=1.9)
            axes.plot(100 * low, place, **{**SQUARE, "mfc": EDITED if low < floor else PAGE})
            axes.plot([100 * floor] * 2, [place - 0.36, place + 0.36], color=INK, lw=1.3, ls="dotted")
        axes.set_xlim(100 * min(0.8, max(0.0, min(low for _, low in rows) - 0.03)), 100.6)
        _names(axes, [concept.concept for concept, _ in rows])
        _title(axes, "Not found in at least, % of images, the smallest of all slices", rows=len(rows))
        axes.plot([], [], label="one-sided 95 % lower bound", **{**SQUARE, "mfc": PAGE})
        axes.plot([], [], color=INK, lw=1.3, ls="dotted", label="needed")
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
        return _svg(figure, "every concept's smallest bound, against what is needed")


# -- parts ------------------------------------------------------------------------------------------------------------


def _figure(rows: int, each: float = 0.34) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 1.05 + each * max(1, rows)), layout="constrained")
    return figure, figure.subplots()


def _drop(axes: Axes, place: int, drop: float, low: float, high: float, *, bad: bool) -> None:
    """A drop in points: filled square if it did not pass, open circle if it did; a tick at its upper bound."""
    axes.plot([100 * low, 100 * high], [place] * 2, color=EDITED, lw=1.9 if bad else 1.2)
    axes.plot(100 * high, place, ls="none", marker="|", color=EDITED, ms=7)
    axes.plot(100 * drop, place, **{**SQUARE, "marker": "s" if bad else "o", "mfc": EDITED if bad else PAGE})


def _margins(axes: Axes, concept: ConceptReport, observed: str, upper: str) -> None:
    """What may be lost, observed and by its bound; older reports don't print every gate."""
    axes.axvline(0, color=GRID, lw=1)
    for gate, dashes, words in ((observed, "--", "drop"), (upper, ":", "bound")):
        if gate in concept.protocol.gates:
            margin = 100 * concept.protocol.gates[gate]
            axes.axvline(margin, color=INK, lw=1, ls=dashes, label=f"most {words}: {margin:g} points")


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [*reversed(names)])
    axes.set_ylim(-0.6, len(names) - 0.4)


def _title(axes: Axes, title: str, *, rows: int) -> None:
    axes.tick_params(axis="y", labelsize=8.5 if rows < 12 else 8)
    _plain(axes, "", "x")
    axes.figure.suptitle(title, x=0.01, ha="left", fontsize=9.5)


def _plain(axes: Axes, title: str, grid: Literal["x", "y"]) -> None:
    """A title, a grid along one axis to read values by, and no box around it."""
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(axis=grid, color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _svg(figure: Figure, what: str) -> str:
    """The drawing as an element of the page, in the page's colours."""
    buffer = io.StringIO()
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set(facecolor="none", edgecolor="none")
    canvas: Any = FigureCanvasSVG(figure)  # `savefig` would draw twice, once for the layout alone
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(
        r"#[0-9a-f]{6}", lambda found: f"var({VARIABLES[found[0]]})" if found[0] in VARIABLES else found[0], svg
    )
    words = f"Chart: {what}; the numbers are in the tables below"
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{_attribute(words)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
