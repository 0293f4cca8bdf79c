"""Keys and passwords taken out of texts that are shown or written: messages, caches, addresses."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

MASK = "***"
FEWEST_CHARACTERS = 4
"""Shorter keys are not masked: the text would be unreadable, and they protect nothing."""
PART_CHARACTERS = 8
"""A part of a key at least this long is masked too: servers echo keys cut short."""
SECRET_NAMES = re.compile(r"key|token|secret|pass|auth|sig", re.IGNORECASE)


class Redactor:
    """Replaces secrets in texts by ``***``, in every form a server or a library may write them.

    Masked are the secret itself, its URL, JSON and base64 encodings, and, where it is long, every
    part of these of 8 characters or more, whatever the capitals.

    Args:
        secrets: keys and passwords; those shorter than 4 characters are not masked.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self._whole = sorted((f for f in forms if len(f) >= FEWEST_CHARACTERS), key=len)[::-1]
        self._parts = {
            form[i : i + PART_CHARACTERS].lower()
            for form in forms
            for i in range(len(form) - PART_CHARACTERS + 1)
        }

    def masked(self, text: str) -> str:
        """``text`` without the secrets. Mask before cutting a text short, never after."""
        for form in self._whole:
            text = text.replace(form, MASK)
        if not self._parts:
            return text
        lower = text.lower()
        hidden = [False] * len(text)
        for i in range(len(lower) - PART_CHARACTERS + 1):
            if lower[i : i + PART_CHARACTERS] in self._parts:
                hidden[i : i + PART_CHARACTERS] = [True] * PART_CHARACTERS
        marked = "".join("\0" if hide else sign for sign, hide in zip(text, hidden, strict=False))
        return re.sub("\0+", MASK, marked)


def url_secrets(url: str) -> list[str]:
    """The secrets in an address: its password (or lone user name), and keys in its query."""
    user, password = url_login(url)
    secrets = [password or user] if user or password else []
    if password:
        secrets.append(f"{user}:{password}")  # so it is sent, in base64
    query = url.partition("?")[2].partition("#")[0]
    secrets += [value for name, value in parse_qsl(query) if SECRET_NAMES.search(name)]
    return secrets


def url_login(url: str) -> tuple[str, str]:
    """``(user, password)`` of an address, decoded; empty where there is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "", ""
    return unquote(parts.username or ""), unquote(parts.password or "")


def public_url(url: str) -> str:
    """The address as it may be shown: without a login, keys in the query masked."""
    shown = re.sub(r"(?<=://)[^\s?#]*@", f"{MASK}@", url)
    return re.sub(
        r"(?<=[?&])([^=&#\s]+)=([^&#\s]*)",
        lambda match: f"{match[1]}={MASK}" if SECRET_NAMES.search(match[1]) else match[0],
        shown,
    )


def without_login(url: str) -> str:
    """The address without its user name and password."""
    return re.sub(r"(?<=://)[^/\s?#]*@", "", url)


def _forms(secret: str) -> set[str]:
    """The secret as it may be written: plain, URL-encoded, in JSON, in base64 at any offset."""
    if len(secret) < FEWEST_CHARACTERS:
        return set()
    data = secret.encode(errors="surrogatepass")
    forms = {
        secret,
        quote(secret, safe="", errors="replace"),
        quote_plus(secret, errors="replace"),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            # The characters at both ends also depend on what stands beside the secret.
            code = encode(b"\0" * offset + data).decode().rstrip("=")
            forms.add(code[(0, 2, 3)[offset] : len(code) - ((offset + len(data)) % 3 > 0)])
    return {form for form in forms if len(form) >= FEWEST_CHARACTERS}
