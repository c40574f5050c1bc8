"""report.html: the audit report for people, in one file that fetches nothing.

The order of the page is the order in which a compliance reader asks: the verdict, what was not tested, who answers for
it, which files these are, and only then the numbers. Everything that came from outside is escaped, a content security
policy forbids every request, and the same report and images give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup, escape

from safear_edit.attacks.brought import BroughtBack
from safear_edit.attacks.record import Attacks
from safear_edit.attacks.suites import decision
from safear_edit.construct.sheets import SheetNote
from safear_edit.editor.method_log import Cell
from safear_edit.errors import SpecError
from safear_edit.evaluate.scored_images import INDEX
from safear_edit.evaluate.stats import Rate
from safear_edit.files.records import AGAIN, read_record
from safear_edit.report import attacks, charts
from safear_edit.report.governance import decided
from safear_edit.report.schema import EVIDENCE, Report
from safear_edit.report.sentences import members_rule, percent
from safear_edit.report.tiles import Sheets, tile_uri

TEMPLATES = Path(__file__).resolve().parent / "templates"
PAIR_SHEETS = re.compile(r"slice-(?!.*-by-scale$)|before_after$")
"""Sheets whose images the page shows one by one where they were kept."""
SAID = {True: "found", False: "not found", None: "cannot tell"}


@dataclass(frozen=True)
class FigurePair:
    """One prompt's two images as they are on the page; selection: random or worst."""

    selection: str
    prompt: str
    seed: str
    id: str
    hidden: bool
    base: str
    edited: str
    said: str


@dataclass(frozen=True)
class FigureGroup:
    """The pairs of one slice or group of one concept, some at random and the worst."""

    concept: str
    slice: str
    pairs: tuple[FigurePair, ...]


def render_html(report: Report, root: Path, approved: Sequence[str] = ()) -> str:
    """The page. Image sheets are read from `root` (their paths are relative to it) and must be the report's own.

    approved: who has approved the release since it was signed, one line each; a release's own page can't know.

    SpecError when a sheet is missing or its sha256 isn't the one in the report.
    """
    drawn = [
        {
            "charts": [Markup(one) for one in charts.charts(concept)],
            "members": Markup(charts.member_chart(concept)),
            "depth": Markup(charts.depth_chart(concept)),
        }
        for concept in report.concepts
    ]
    figures = figure_groups(report, root)
    shown_alone = {sheet.file for sheet in report.images if figures and PAIR_SHEETS.match(PurePath(sheet.file).stem)}
    sheets = [
        (sheet, _data_uri(root / sheet.file, sheet.sha256)) for sheet in report.images if sheet.file not in shown_alone
    ]
    overview = Markup(charts.overview_chart(report.concepts))
    report = decided(report) if approved else report
    page = environment().get_template("report.html")
    return page.render(r=report, drawn=drawn, overview=overview, figures=figures, sheets=sheets, approved=approved)


def figure_groups(report: Report, root: Path) -> tuple[FigureGroup, ...]:
    """The pairs that the sheets show, one by one; none where the images were not kept.

    SpecError when a file isn't the one that the report was made from.
    """
    found, folders = [], dict[Path, Sheets | None]()
    for sheet in report.images:
        path = root / sheet.file
        if not path.stem.startswith("slice-") or not PAIR_SHEETS.match(path.stem):
            continue
        if path.parent not in folders:
            folders[path.parent] = _kept_images(report, root, path.parent)
        kept = folders[path.parent]
        if kept is None:
            continue
        _content(path, sheet.sha256)
        concept = PurePath(sheet.file).parts[1] if len(PurePath(sheet.file).parts) > 2 else report.concepts[0].name
        pairs = tuple(_figure_pairs(kept, path.with_suffix(".json")))
        found.append(FigureGroup(concept, path.stem.removeprefix("slice-"), pairs))
    return tuple(found)


def _kept_images(report: Report, root: Path, folder: Path) -> Sheets | None:
    """The kept images in a folder, if the report was made from them; SpecError if they aren't the same files."""
    name = folder.relative_to(root).as_posix()
    inputs = {
        file: digest for file, digest in report.reproduce.inputs.items() if PurePath(file).parent.as_posix() == name
    }
    if f"{name}/{INDEX}" not in inputs:
        return None
    for file, digest in inputs.items():
        _content(root / file, digest)
    return Sheets.of(folder / INDEX)


def _figure_pairs(kept: Sheets, note: Path) -> Iterator[FigurePair]:
    """Base and edited image of each prompt on a sheet, in its order; SpecError for a note that names one of them, or an
    image that wasn't kept."""
    shown = read_record(SheetNote, note).images
    edited = {(one.prompt_id, one.selection): one for one in shown if one.model == "edited"}
    before = [one for one in shown if one.model == "base"]
    if alone := [one.prompt_id for one in before if (one.prompt_id, one.selection) not in edited]:
        raise SpecError(str(note), "both models' image of every prompt", f"the base model's of {alone[0]!r}", AGAIN)
    both = [(one, edited[one.prompt_id, one.selection]) for one in before]
    tiles = kept.crops({(one.prompt_id, model) for one, _ in both for model in ("base", "edited")})
    for base, after in both:
        yield FigurePair(
            selection=base.selection,
            prompt=base.prompt,
            seed=base.seed,
            id=base.prompt_id,
            hidden=kept.tile(base.prompt_id, "base").hidden,
            base=tile_uri(tiles[base.prompt_id, "base"]),
            edited=tile_uri(tiles[base.prompt_id, "edited"]),
            said=f"{SAID[base.present]} → {SAID[after.present]}",
        )


def attacks_page(found: Attacks, images: str = "") -> str:
    """attacks.html: what `attack` found, as the report's section has it, on a page of its own.

    images: the page of images beside it; "" where nothing was brought back.
    """
    return environment().get_template("attacks_page.html").render(a=found, images=images)


def attacks_sheet(found: Attacks, brought: Sequence[BroughtBack], page: str) -> str:
    """attacks-images.html: what was brought back, each image beside its prompt. page: the page of the figures."""
    shown = {one.attack: one.images for one in brought}
    return environment().get_template("attacks_sheet.html").render(a=found, shown=shown, page=page)


@cache  # a template is compiled once, for all pages that a process writes
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
    made.globals |= {"decision": decision, "points": points, "evidence_link": evidence_link}
    made.globals |= {"members_rule": members_rule}
    made.globals |= {"durability": lambda curves: Markup(charts.durability_chart(curves))}
    made.globals |= {"ranked": attacks.ranked, "headline": attacks.headline, "about": attacks.about}
    made.filters |= {"percent": percent, "points": points, "size": _size, "cell": _cell, "code": _code, "ratio": _ratio}
    return made


def _cell(value: Cell) -> str:
    """What a method tells in one cell of its log: three digits of a number, – where nothing was measured."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _data_uri(path: Path, sha256: str) -> str:
    """The image inside the page, if it is the one that the report names."""
    return "data:image/png;base64," + base64.b64encode(_content(path, sha256)).decode()


def _content(path: Path, sha256: str) -> bytes:
    """A file's bytes; SpecError if it isn't the report's."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SpecError(str(path), "a file of the report", str(error.strerror), "rebuild the report") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SpecError(str(path), f"sha256 {sha256[:12]}…", f"{found[:12]}…", "rebuild the report from its run")
    return content


def _ratio(value: float) -> str:
    """Two decimals; what rounds to nothing has no sign."""
    return f"{value:z.2f}"


def _code(text: str) -> Markup:
    """A sentence whose `commands` are shown as such."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def evidence_link(**filters: str) -> str:
    """Where the report sends a reader who asks what is behind a number; filters: concept, slice, member, …"""
    return f"{EVIDENCE}#{urlencode({name: value for name, value in filters.items() if value})}"


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
