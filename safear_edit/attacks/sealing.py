"""Texts that must not lie around: prompts that brought explicit content back, readable only with a key."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from safear_edit.errors import UsageError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet


KEY = "SAFEAR_LOCK_KEY"
"""Environment variable with a key of `Fernet.generate_key()`: 32 bytes in URL-safe base64."""


def sealed(text: str) -> str | None:
    """The text encrypted and authenticated (Fernet: AES-128-CBC and HMAC-SHA256); None without a key."""
    return _fernet(key).encrypt(text.encode()).decode() if (key := os.environ.get(KEY)) else None


def opened(token: str) -> str | None:
    """The text again; None without a key. UsageError for another key's."""
    from cryptography.fernet import InvalidToken

    if not (key := os.environ.get(KEY)):
        return None
    try:
        return _fernet(key).decrypt(token.encode()).decode()
    except InvalidToken:
        raise UsageError(KEY, "the key that sealed this prompt", "another one", "set the right key") from None


def _fernet(key: str) -> Fernet:
    from cryptography.fernet import Fernet

    try:
        return Fernet(key)
    except ValueError:
        fix = "make one: python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
        raise UsageError(KEY, "32 bytes in URL-safe base64", "something else", fix) from None
