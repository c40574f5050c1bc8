"""The caption cleaner that LlamaGen's text features were made with (DeepFloyd / PixArt rules).

Behaviour of https://github.com/FoundationVision/LlamaGen/tree/ce98ec4 (language/t5.py), which runs it twice; quirks of
the original are kept, since the published weights were trained on what it leaves. No recorded numerics exist for it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from urllib.parse import unquote_plus

Rules = Sequence[tuple[str, str]]
"""(pattern, what takes its place), applied in order to text that is already in lower case."""

_HOST = r"[a-z0-9.-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_ADDRESSES: Rules = (
    (rf"\b(?:https?:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),  # of a URL only the scheme and a well-known host go
    (rf"\b(?:www:(?:/{{1,3}}|[a-z0-9%])|{_HOST})", ""),
)
_SYMBOLS: Rules = (
    (r"@\w+\b", ""),  # handles
    ("[\u31c0-\u4dff\u4e00-\u9fff]+", ""),  # CJK strokes, katakana extensions, enclosed, compatibility, ideographs
    (
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
        "\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?|&amp", ""),
)
_NUMBERS: Rules = (
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # addresses of machines
    (r"\d:\d\d\s+$", ""),  # an article number at the end
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (r"\S+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_LEFTOVERS: Rules = (
    (r"\b[a-z]{1,3}\d{3,15}\b", ""),  # identifiers that mix letters and figures, three shapes
    (r"\b[a-z]+\d+[a-z]+\b", ""),
    (r"\b\d+[a-z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-z]+\d+[a-z]+\d+[a-z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,:;-]", ""),
    (r"['_,:+-]$", ""),
    (r"^\.\S+$", ""),
)


def clean(caption: str) -> str:
    """One pass: lower-case; drop addresses, markup, handles, CJK, file names and ids; tidy quotes and dashes.

    A caption of plain words comes out lower-cased and otherwise as it was; two passes are what LlamaGen conditions on.
    """
    import ftfy
    from bs4 import BeautifulSoup

    text = unquote_plus(caption).strip().lower().replace("<person>", "person")
    text = BeautifulSoup(_applied(_ADDRESSES, text), features="html.parser").text
    text = _applied(_NUMBERS, _applied(_SYMBOLS, text))
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _applied(_LEFTOVERS, text).strip()


def _applied(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
