"""redact.py: what is a secret is hidden however it is spelled; what isn't stays."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from urllib.parse import quote

import pytest

from safear_edit.errors import UsageError
from safear_edit.redact import HIDDEN, clean_environment, is_secret, redact
from safear_edit.release import keys


@pytest.fixture
def pem(tmp_path: Path) -> str:
    return keys.generate(tmp_path / "keys").private.read_text()


def body(pem: str) -> list[str]:
    return pem.splitlines()[1:-1]


@pytest.mark.parametrize("spell", [str, repr, json.dumps, shlex.quote, lambda t: t.replace("\n", "\\n")])
def test_a_private_key_is_hidden_in_any_spelling(pem: str, spell: object) -> None:
    shown = redact(f"before {spell(pem)} after", {}, ())  # type: ignore[operator]
    assert not any(line in shown for line in body(pem)) and shown.startswith("before ") and HIDDEN in shown
    assert not any(line in redact(pem[: len(pem) // 2], {}, ()) for line in body(pem))


def test_a_key_that_a_shell_cut_into_words_is_hidden_in_what_refers_to_one(pem: str) -> None:
    typed = ["apply", "--key", *pem.split()]
    assert redact(f"no such spec: {body(pem)[0]}", {}, typed) == f"no such spec: {HIDDEN}"


def test_a_variable_that_is_named_like_a_secret_is_hidden_however_spelled() -> None:
    word = 'pass"word\\é 1'
    environ = {"SAFEAR_SIGNING_KEY_PASSWORD": word, "HF_TOKEN": "abcdef-123456-token", "HOME": "/root/home-of-me"}
    for spelled in (word, json.dumps(word), repr(word), shlex.quote(word), quote(word, safe="")):
        assert "word" not in redact(f"x {spelled} y", environ, ())
    assert redact("abcdef-123456-token in /root/home-of-me", environ, ()) == f"{HIDDEN} in /root/home-of-me"


def test_lines_of_a_key_in_the_environment_are_hidden_one_by_one(pem: str) -> None:
    for value in (pem, pem.replace("\n", "\\n")):
        assert redact(body(pem)[1], {"MY_OWN_NAME": value}, ()) == HIDDEN


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("hsm:1?label=x&pin=83517", "hsm:1?label=x&pin=[hidden]"),
        ("pkcs11:token=a;pin-value=s3cret;id=1", "pkcs11:token=[hidden];pin-value=[hidden];id=1"),
        ("https://me:s3cret@hub/x", "https://[hidden]@hub/x"),
        ("Bearer hf_ABCDEFGHIJKLMNOPQRST", "Bearer [hidden]"),
        ("tokens=4, max_token=5, seed=123456", "tokens=4, max_token=5, seed=123456"),
        ("spin=12 pinhole=3", "spin=12 pinhole=3"),
        ("-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZI", "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZI"),
    ],
)
def test_shapes(text: str, shown: str) -> None:
    assert redact(text, {}, ()) == shown
    assert redact(shown, {}, ()) == shown


def test_short_values_and_parts_of_longer_words_stay() -> None:
    assert redact("a test of it", {"API_KEY": "test"}, ()) == "a test of it"
    assert redact("91234567 and 123456", {"PIN": "123456"}, ()) == f"91234567 and {HIDDEN}"


def test_children_inherit_no_secret(pem: str) -> None:
    environ = {"PATH": "/bin", "HF_TOKEN": "x", "SAFEAR_SIGNING_KEY": pem, "SAFEAR_SIGNING_KEY_PASSWORD": "y",
               "AWS_SECRET_ACCESS_KEY": "z", "ODD": pem, "SAFEAR_SIGNING_PUBLIC_KEY": "k.pub"}  # fmt: skip
    assert clean_environment(environ) == {"PATH": "/bin", "SAFEAR_SIGNING_PUBLIC_KEY": "k.pub"}
    assert not is_secret("AWS_ACCESS_KEY_ID") and not is_secret("KEYBOARD") and is_secret("GITHUB_TOKEN")


def test_every_message_of_ours_is_redacted(pem: str) -> None:
    assert body(pem)[0] not in str(UsageError(pem, "a key", pem, "x"))
