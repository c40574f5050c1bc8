"""The pages of a folder in a browser: a read-only server on this machine, for what the folder's manifest names.

Of a release that is its pages and the image sheets that its report names; of what `compare`, `tune` and `eval` wrote,
the pages, figures and tables. Nothing else is answered, no folder is listed, nothing is written, and a request that was
made out to another host's name (DNS rebinding) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safear_edit.errors import UsageError
from safear_edit.report.build import read_report
from safear_edit.report.schema import EVIDENCE

PAGES = ("report.html", EVIDENCE, "README.md", "report.json", "bom.cdx.json")
START, INDEX = "report.html", "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".csv": "text/plain; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
}
"""What is served, by suffix."""
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Pages may show their own images and run their own scripts, and fetch nothing."""


def manifest(folder: Path) -> dict[str, Path]:
    """By name, with "" for the start page, the files that may be served: regular ones inside the folder.

    UsageError for a folder that has no page.
    """
    names = _of_release(folder) if (folder / "report.json").is_file() else _of_pages(folder)
    inside = folder.resolve()
    found = {name: folder / name for name in names}
    found = {name: path for name, path in found.items() if path.is_file() and path.resolve().is_relative_to(inside)}
    start = next((name for name in (START, INDEX) if name in found), None)
    if start is None:
        fix = "give the folder of `apply`, or the one of `compare`, `tune` or `eval --out`"
        raise UsageError(str(folder), f"a folder with {START} or {INDEX}", "none", fix)
    return {"": found[start], **found}


def _of_release(folder: Path) -> Iterator[str]:
    yield from PAGES
    yield from (sheet.file for sheet in read_report(folder / "report.json").images)


def _of_pages(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in KINDS and not any(part.startswith(".") for part in name.parts):
            yield name.as_posix()


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the files of the manifest; anything else is not found."""

    def __init__(self, files: Mapping[str, Path], *given: object) -> None:
        self.files = files
        super().__init__(*given)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        if self.headers.get("Host", "").partition(":")[0] not in ("127.0.0.1", "localhost"):  # at port 80 without one
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        path = self.files.get(unquote(urlsplit(self.path).path).removeprefix("/"))
        try:
            data = path.read_bytes() if path else None
        except OSError:
            data = None
        if path is None or data is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        about = {
            "Content-Type": KINDS.get(path.suffix, "application/octet-stream"),
            "Content-Length": str(len(data)),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in about.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *words: object) -> None:
        """Nothing: a person looks at the browser."""


def server(folder: Path, port: int = 0) -> ThreadingHTTPServer:
    """Bound to 127.0.0.1, not yet serving; port 0 takes a free one. UsageError for no pages, or a port in use."""
    files = manifest(folder)
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, files))
    except OSError as error:
        raise UsageError(f"--port {port}", "a free port", error.strerror or "an error", "leave --port out") from None
