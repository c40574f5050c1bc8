"""report.html: the audit report for people, in one file that fetches nothing.

The order of the page is the order in which a compliance reader asks: the verdict, what was not tested, who answers for
it, which files these are, and only then the numbers. Everything that came from outside is escaped, a content security
policy forbids every request, and the same report and images give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from safear_edit.attacks.record import Attacks
from safear_edit.attacks.suites import decision
from safear_edit.editor.method_log import Cell
from safear_edit.errors import SpecError
from safear_edit.evaluate.stats import Rate
from safear_edit.report.schema import ConceptReport, Report
from safear_edit.report.sentences import percent

TEMPLATES = Path(__file__).resolve().parent / "templates"
BASE_COLOUR, EDITED_COLOUR, INK, GRID = "#8b93a1", "#1d4f91", "#1c2430", "#e3e7ed"
CHART_STYLE: dict[Any, Any] = {  # matplotlib types the keys as some 300 literals
    "svg.hashsalt": "safear-edit",  # ids in the drawing come from this instead of from chance
    "svg.fonttype": "none",  # text stays text: selectable, and drawn in the page's font
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def render_html(report: Report, root: Path) -> str:
    """The page. Image sheets are read from `root` (their paths are relative to it) and must be the report's own.

    SpecError when a sheet is missing or its sha256 isn't the one in the report.
    """
    charts = [Markup(chart(concept)) for concept in report.concepts]
    drops = [Markup(member_chart(concept)) for concept in report.concepts]
    pictures = [(sheet, _data_uri(root / sheet.file, sheet.sha256)) for sheet in report.images]
    return environment().get_template("report.html").render(r=report, charts=charts, drops=drops, pictures=pictures)


def attacks_page(found: Attacks) -> str:
    """attacks.html: what `attack` found, as the report's section has it, on a page of its own."""
    return environment().get_template("attacks_page.html").render(a=found)


def environment() -> jinja2.Environment:
    """The templates with what they may call; everything is escaped, and a name that isn't there is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value.replace(" %", "\u00a0%") if isinstance(value, str) else value,  # no lonely "%"
    )
    made.globals |= {"decision": decision, "points": points}
    made.filters |= {"percent": percent, "points": points, "size": _size, "cell": _cell}
    return made


def _cell(value: Cell) -> str:
    """What a method tells in one cell of its log: three digits of a number, – where nothing was measured."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def chart(concept: ConceptReport) -> str:
    """An inline SVG: shares before and after with 95 % intervals, the concept on the left, what must stay on the right.

    Base and edited differ in marker and line as well as in colour.
    """
    left = [(part.slice, part.base_found, part.edited_found) for part in concept.erasure]
    right = [(group.group, group.base_kept, group.edited_kept) for group in concept.preservation]
    rows = max(len(left), len(right))
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=(9.6, 1.35 + 0.52 * rows), layout="constrained")
        axes = figure.subplots(1, 2 if right else 1, squeeze=False)[0]
        _panel(axes[0], f"{concept.concept} found in images that ask for it", left)
        if right:
            _panel(axes[1], "Other things drawn when asked for", right)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        return _svg(figure, f"shares before and after the edit for {concept.name}")


def member_chart(concept: ConceptReport) -> str:
    """An inline SVG: every member's drop with its one-sided upper bound against the margins; "" without members.

    Worst first within each group. A member that did not pass is filled and square, so colour isn't needed to see it.
    """
    groups = [group for group in concept.preservation if group.members]
    rows = [(group.group if i == 0 else "", one) for group in groups for i, one in enumerate(group.members)]
    if not rows:
        return ""
    gates = concept.protocol.gates
    with rc_context(CHART_STYLE):
        figure = Figure(figsize=(9.6, 1.2 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, (_, one) in enumerate(reversed(rows)):
            bad = one.verdict != "PASS"
            look: dict[str, Any] = {"color": EDITED_COLOUR, "marker": "s" if bad else "o", "ms": 5.5}
            axes.plot([100 * one.drop, 100 * one.upper95], [place] * 2, color=EDITED_COLOUR, lw=1.9 if bad else 1.2)
            axes.plot(100 * one.drop, place, ls="none", mfc=EDITED_COLOUR if bad else "white", **look)
            axes.plot(100 * one.upper95, place, ls="none", marker="|", color=EDITED_COLOUR, ms=7)
        for gate, dashes, words in (("member_drop", "--", "drop"), ("member_upper", ":", "bound")):
            if gate in gates:
                margin = 100 * gates[gate]
                axes.axvline(margin, color=INK, lw=1, ls=dashes, label=f"most {words}: {margin:g} points")
        names = [f"{group}: {one.name}" if group else one.name for group, one in reversed(rows)]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(-0.7, len(rows) - 0.3)
        _plain(axes, "Drop in points: dot observed, bar to the one-sided 95 % upper bound")
        axes.axvline(0, color=GRID, lw=1)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _svg(figure, f"drop of each preserved member for {concept.name}")


def _svg(figure: Figure, what: str) -> str:
    """The drawing as an element of the page, named for those who can't see it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    words = f"Chart: {what}; the numbers are in the tables below"
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)


def _panel(axes: Axes, title: str, rows: Sequence[tuple[str, Rate | None, Rate | None]]) -> None:
    looks: tuple[tuple[int, str, float, dict[str, Any]], ...] = (
        (1, "base model", 0.13, {"marker": "o", "mfc": "white", "color": BASE_COLOUR, "ms": 6, "lw": 1.4}),
        (2, "edited model", -0.13, {"marker": "s", "color": EDITED_COLOUR, "ms": 5.5, "lw": 1.9}),
    )
    for column, label, shift, look in looks:
        for place, row in enumerate(reversed(rows)):
            rate = row[column]
            if isinstance(rate, Rate):
                axes.plot([100 * rate.low, 100 * rate.high], [place + shift] * 2, color=look["color"], lw=look["lw"])
                axes.plot(100 * rate.estimate, place + shift, ls="none", **look)
        axes.plot([], [], label=f"{label}, 95 % interval", **look)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlim(-2, 102)
    axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
    _plain(axes, title)


def _plain(axes: Axes, title: str) -> None:
    """A title, a grid to read values by, and no box around it."""
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _data_uri(path: Path, sha256: str) -> str:
    """The image inside the page, if it is the one that the report names."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(str(path), "an image sheet of the report", str(error.strerror), "rebuild the report") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SpecError(str(path), f"sha256 {sha256[:12]}…", f"{found[:12]}…", "rebuild the report from its run")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def rate_text(rate: Rate | None) -> str:
    """k / n and the share; a dash where no prompt counted."""
    return f"{rate.k} / {rate.n} ({percent(rate.estimate)})" if rate else "–"


def points(share: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _size(count: int) -> str:
    """Bytes for people."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
