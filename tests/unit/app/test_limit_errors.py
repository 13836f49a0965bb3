"""Errors of limits name the option that was given, as it was written."""

from __future__ import annotations

from typing import Any

import pytest

from taskflow import Concurrency, Limit, job
from taskflow.model.errors import DeclarationError


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^name= has 0 bytes"):
        Limit("", Concurrency(1))


@pytest.mark.parametrize(
    ("declared", "says"),
    [({"limits": [Concurrency(1, key="tenants")]}, "key='tenants': 'tenants'"), ({"fair": "tenants"}, "fair='tenants': 'tenants'")],
)
def test_an_unknown_parameter_is_quoted_as_written(declared: Any, says: str) -> None:
    async def imports(tenant: str) -> None: ...

    with pytest.raises(DeclarationError, match=says):
        job(name="tests.limit_errors", **declared)(imports)
