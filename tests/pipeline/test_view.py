"""The server answers for the manifest's files and for nothing else, on this machine alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from safear_edit.errors import UsageError
from safear_edit.pipeline.view import manifest, server
from safear_edit.report.html import render_html
from tests.report.test_build import built


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "pages"
    (folder / "runs/one").mkdir(parents=True)
    (folder / ".base").mkdir()
    for name, text in {"index.html": "<p>start", "runs/one/report.html": "<p>run", "rows.csv": "a,b"}.items():
        (folder / name).write_text(text)
    for name in (".base/secret.html", "weights.safetensors"):
        (folder / name).write_text("not for a browser")
    (tmp_path / "outside.html").write_text("elsewhere")
    (folder / "link.html").symlink_to(tmp_path / "outside.html")
    return folder


@pytest.fixture
def port(pages: Path) -> Iterator[int]:
    with server(pages) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert serving.server_address[0] == "127.0.0.1"
        yield serving.server_port
        serving.shutdown()
        thread.join()


def asked(port: int, path: str, method: str = "GET", host: str = "") -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_pages_are_served(port: int) -> None:
    answer, body = asked(port, "/")
    assert (answer.status, body) == (200, b"<p>start") and answer.headers["Content-Type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert asked(port, "/runs/one/report.html?x=1")[1] == b"<p>run"
    answer, body = asked(port, "/rows.csv", "HEAD")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"", "3")
    assert asked(port, "/", host=f"localhost:{port}")[0].status == 200


OTHERS = (
    "/weights.safetensors",
    "/.base/secret.html",
    "/link.html",
    "/../outside.html",
    "/%2e%2e/outside.html",
    "/runs",
)


@pytest.mark.parametrize("path", OTHERS)
def test_nothing_else_is(port: int, path: str) -> None:
    assert asked(port, path)[0].status == 404


def test_only_reading_and_only_by_this_machines_name(port: int) -> None:
    assert asked(port, "/", host="evil.example:80")[0].status == 421
    assert asked(port, "/", "POST")[0].status == 501


def test_a_release_shows_its_pages_and_the_reports_sheets(tmp_path: Path) -> None:
    report = built(tmp_path)
    (tmp_path / "report.json").write_text(report.to_json())
    (tmp_path / "report.html").write_text(render_html(report, tmp_path))
    found = manifest(tmp_path)
    assert found[""] == tmp_path / "report.html"
    assert {sheet.file for sheet in report.images} <= set(found) and report.images
    assert not [name for name in found if name.endswith((".safetensors", ".jsonl"))]


def test_a_folder_without_pages_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a folder with report.html or index.html"):
        server(tmp_path)
