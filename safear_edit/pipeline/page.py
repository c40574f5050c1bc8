"""The frame of the pages that `compare`, `tune` and `eval` write: they fetch nothing but images beside them."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px;display:block;overflow-x:auto}
th,td{border:1px solid #ccc;padding:.25rem .5rem}
th{background:#f3f3f3;text-align:left}img{max-width:100%;image-rendering:pixelated}td img{width:96px}"""


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML already."""
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text."""
    return raw_table(head, ([html.escape(cell) for cell in cells] for cells in rows))


def raw_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML already; its head is plain text."""

    def line(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + line(map(html.escape, head), "th") + "\n".join(line(cells, "td") for cells in rows) + "</table>"


def image(name: str, alt: str) -> str:
    """An image that lies beside the page."""
    return f'<img src="{html.escape(name)}" alt="{html.escape(alt)}">'


def figure(canvas: Figure) -> dict[str, bytes]:
    """A figure as SVG and PNG: the same figures, the same bytes."""
    from matplotlib import rc_context

    found = {}
    with rc_context({"svg.hashsalt": "safear-edit"}):
        for kind in ("svg", "png"):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
            found[kind] = buffer.getvalue()
    return found
