"""Keys and passwords do not get into texts, in whatever form a server writes them."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from easyeditor.redaction import Redactor, public_url, url_login, url_secrets, without_login

KEY = 'sk-A1b2/C3d4+E5f6"G7h8é'
FORMS = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "in an address": quote(KEY, safe=""),
    "in JSON": json.dumps(KEY),
    "in repr": repr({"key": KEY}),
    "in base64": base64.b64encode(KEY.encode()).decode(),
    "after a name in base64": base64.b64encode(b"user:" + KEY.encode()).decode(),
    "after another": base64.b64encode(b"x" + KEY.encode() + b"yz").decode(),
    "cut off": KEY[:12] + "…",
    "its end": "…" + KEY[-12:],
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_a_key_is_masked_in_every_form(text):
    masked = Redactor([KEY]).masked(f"Bad key {text} given.")
    assert "***" in masked
    assert masked.startswith("Bad key ")
    assert masked.endswith(" given.")
    assert len(masked) <= len("Bad key {'key': '***'} given.") + 4


def test_other_texts_stay():
    text = "The capital of France is Paris. \u0130 \u1e9e"
    assert Redactor([KEY]).masked(text) == text
    assert Redactor([]).masked(text) == text
    assert Redactor(["is"]).masked(text) == text  # too short to protect anything
    assert Redactor(["s3cr3t"]).masked("bad key s3cr3t, s3cr4t") == "bad key ***, s3cr4t"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://h:1/v1", "http://h:1/v1"),
        ("http://me:pass-word@h:1/v1", "http://***@h:1/v1"),
        ("http://tok-12345@h/v1", "http://***@h/v1"),
        ("ftp://me:pa/ss-word@h/v1", "ftp://***@h/v1"),
        ("https://h/v1?api_key=pass-word&v=2", "https://h/v1?api_key=***&v=2"),
    ],
)
def test_addresses(url, shown):
    assert public_url(url) == shown
    masked = Redactor(url_secrets(url)).masked("pass-word tok-12345 v1")
    assert masked.count("***") == ("pass-word" in url) + ("tok-12345" in url)


def test_the_login_of_an_address():
    assert url_login("http://me:p%40ss@h/v1") == ("me", "p@ss")
    assert url_login("http://h/v1") == url_login("http://[h/v1") == ("", "")
    assert without_login("http://me:p%40ss@h/v1") == "http://h/v1"
