"""Values are shown without secrets, and never longer than requested."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from taskflow.model.masking import HIDDEN, DisplayLimits, is_secret, masked_value

LIMITS = DisplayLimits(characters=40, items=3, levels=2)


SECRETS = (
    "password db_password DB_PASSWORD PGPASSWORD passwords api_key apiKey APIKey X-API-Key apikey token accessToken tokens auth "
    "credentials Authorization client_secret private_key session_id sessionId cookie Set-Cookie XSRF-TOKEN csrf pwd cvv card_number "
    "pass db_pass smtp.pass pw pin userPIN creds cred oauth oauth2 totp sid connect.sid dsn SENTRY_DSN"
)
OTHERS = "key primary_key author tokenize compass monkey session user passport bypass_cache card number pinned spin side bass "
OTHERS += "passed credit"


def test_names_of_secrets_are_known() -> None:
    assert [name for name in f"{SECRETS} {OTHERS}".split() if is_secret(name)] == SECRETS.split()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://u:p/w?x#@h/0", f"redis://u:{HIDDEN}@h/0"),
        ("amqp://:my pass/word@h and ftp://v:x y@k", f"amqp://:{HIDDEN}@h and ftp://v:{HIDDEN}@k"),
        ("http://h:80/a and http://h:443 by me@x", "http://h:80/a and http://h:443 by me@x"),
        ("https://h/x?access_token=abc&n=1#id_token=z", f"https://h/x?access_token={HIDDEN}&n=1#id_token={HIDDEN}"),
        ("/x?Pin=1234 and n=1", f"/x?Pin={HIDDEN} and n=1"),
    ],
)
def test_secrets_in_urls_are_hidden(text: str, shown: str) -> None:
    assert masked_value(text, (), DisplayLimits(100, 0, 0)) == shown


@pytest.mark.parametrize("part", ["://", "://a:", "://a:b ", "://:1/", "?a=", "?", "://a:@"])
def test_hiding_takes_linear_time(part: str) -> None:
    masked_value(part * 100_000, (), LIMITS)


def test_secrets_are_hidden_at_every_level() -> None:
    value = {"a": [{"token": "t", "b": 1}], "mine": (1, 2), "password": None, "auth": True, "url": "see redis://u:p@ss@h/0?x=1 now"}
    assert masked_value(value, {"mine"}, DisplayLimits(100, 10, 10)) == {
        "a": [{"token": HIDDEN, "b": 1}],
        "mine": HIDDEN,
        "password": None,
        "auth": True,
        "url": f"see redis://u:{HIDDEN}@h/0?x=1 now",
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("nan"), "nan"), (float("-inf"), "-inf"), (1.5, 1.5), (True, True), (None, None), (2**62, 2**62), (2**63, str(2**63)),
        (10**5000, "<int>"), (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"), (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.50"), "1.50"), (UUID(int=1), "00000000-0000-0000-0000-000000000001"), (b"", "<0 bytes>"), (b"ab", "<2 bytes: 6162>"),
        (b"a" * 50, f"<50 bytes: {'61' * 20}...>"), ("x" * 41, f"{'x' * 40}... (41 characters)"), ({3, 1, 2}, [1, 2, 3]),
        ([1, 2, 3, 4], [1, 2, 3, "... (4 items)"]), ({1: 2}, {"1": 2}),
        (dict.fromkeys("abcd", 0), {"a": 0, "b": 0, "c": 0, "...": "(4 items)"}),
        ([[[1]]], [["<list with 1 items>"]]),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_as_json_can_express_them(value: object, shown: object) -> None:
    assert masked_value(value, (), LIMITS) == shown


_leaves: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals()
)


@given(st.recursive(_leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner), max_leaves=30))
def test_every_value_becomes_json(value: Any) -> None:
    json.dumps(masked_value(value, {"a"}, LIMITS), allow_nan=False)
