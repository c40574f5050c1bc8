"""The verb `view`: a folder's pages in a browser; main.py attaches VERBS."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path

import click

from safear_edit.cli.options import FOLDER, option, taking


@dataclass(frozen=True)
class ViewOptions:
    port: int = option("--port", type=click.IntRange(0, 65535), default=0, help="Where to serve (default: a free one).")
    no_browser: bool = option("--no-browser", is_flag=True, help="Print the address only.")


@click.command()
@click.argument("folder", metavar="DIR", type=FOLDER)
@taking(ViewOptions)
def view(folder: Path, given: ViewOptions) -> int:
    """Open the pages of a release, or of `compare`, `tune` or `eval --out`, in a browser.

    A read-only server on 127.0.0.1, for this folder's pages alone, until Ctrl-C.

    \b
    safear-edit view safe-llamagen
    """
    from safear_edit.pipeline.view import server

    with server(folder, given.port) as serving:
        address = f"http://127.0.0.1:{serving.server_port}/"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if not given.no_browser:
            webbrowser.open(address)
        try:
            serving.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


VERBS: tuple[click.Command, ...] = (view,)
