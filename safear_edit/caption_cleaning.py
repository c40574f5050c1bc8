"""The caption cleaner that LlamaGen's text features were made with (DeepFloyd / PixArt rules; parity.md section 1.4).

Written from the description: https://github.com/FoundationVision/LlamaGen, language/t5.py. Upstream runs it twice.
Not proven by recorded numerics (none exist for it): a caption of plain words comes out lower-cased and unchanged.
"""

from __future__ import annotations

import html
import re
from urllib.parse import unquote_plus

_URL = re.compile(r"\b(?:https?:(?:/{1,3})|www\d{0,3}\.)\S*|\b[\w.-]+\.(?:com|co|ru|net|org|edu|gov|it)\b\S*")
_HANDLE = re.compile(r"@[\w\d]+\b")
_CJK = re.compile("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+")
_DASH = re.compile("[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+")
_DOUBLE, _SINGLE = re.compile("[`´«»“”¨]"), re.compile("[‘’]")
_NOISE = (
    re.compile(r"&quot;?"),
    re.compile(r"&amp"),
    re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}"),  # addresses of machines
    re.compile(r"\d:\d\d\s+$"),  # an article number at the end
    re.compile(r"\\n"),
    re.compile(r"#\d{1,3}\b|#\d{5,}\b|\b\d{6,}\b"),  # numbered tags and long numbers
    re.compile(r"[\S]+\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"),  # file names
    re.compile(r"\b[a-z]+\d+[a-z]+\d*\b|\b\d+[a-z]+\d+\b"),  # identifiers that mix letters and figures
    re.compile(r"(?:worldwide\s+)?(?:free\s+)?shipping|(?:free\s)?download(?:\sfree)?|\bclick\b\s(?:for|on)\s\w+"),
    re.compile(r"\bpage\s+\d+\b|\b\d+[xх×]\d+\b"),
)


def clean(caption: str) -> str:
    """One pass: unquote, lower-case, drop addresses, markup, handles, CJK, file names and ids, tidy quotes and dashes."""
    import ftfy
    from bs4 import BeautifulSoup

    text = unquote_plus(caption).strip().lower().replace("<person>", "person")
    text = _HANDLE.sub("", BeautifulSoup(_URL.sub("", text), features="html.parser").text)
    text = _DASH.sub("-", _CJK.sub("", text))
    text = _SINGLE.sub("'", _DOUBLE.sub('"', text))
    for noise in _NOISE[:5]:
        text = noise.sub(" ", text)
    text = re.sub(r"['\"]{2,}", '"', re.sub(r"\.{2,}", " ", text))
    text = re.sub(r"[#©®•°™]+|[*/]+", " ", re.sub(r"\s+\.\s+", " ", text))
    if len(re.findall(r"[-_]", text)) > 3:
        text = re.sub(r"[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    for noise in _NOISE[5:]:
        text = noise.sub("", text)
    text = re.sub(r"\b\s+:\s+", ": ", re.sub(r"(\D[,./])\b", r"\1 ", text))
    return re.sub(r"\s+", " ", text).strip(" \t\n'\"_-.:;,")
