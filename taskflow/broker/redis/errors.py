"""Translates errors of the server, the driver and the network into taskflow's errors."""

from __future__ import annotations

import re
import ssl
from typing import Final

from redis import exceptions

from taskflow.model.errors import BrokerError, BrokerRefused, BrokerUnavailable, StoreFull

# The first words of errors that are usually temporary, and the driver's exceptions whose messages lack these words.
_PASSING: Final = frozenset({"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "MISCONF", "BUSY", "UNKILLABLE"})

_PASSING_ERRORS: Final = (exceptions.ReadOnlyError, exceptions.MasterDownError, exceptions.ClusterDownError, exceptions.TryAgainError)


# Errors that our scripts raise if a key holds a value that none of them wrote, such as an entry that is too short.
_SPOILT: Final = ("user_script:", "not an integer", "not a valid float", "not a float", "hash value is not")


def broker_error(error: Exception, place: str) -> BrokerError:
    """Return the BrokerError that describes `error`. `place` names the server, without secrets."""
    if isinstance(error, BrokerError):
        return error
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return BrokerRefused(f"Redis at {place} rejects this user and password: {error}")
    if isinstance(error, exceptions.NoPermissionError):
        return not_permitted(str(error), place)
    if isinstance(error, _PASSING_ERRORS):
        return BrokerUnavailable(f"Redis at {place} cannot run this now: {error}")
    if isinstance(error, exceptions.ResponseError):
        return _of_answer(str(error), place)
    if _is_about_certificates(error):
        return BrokerRefused(f"Redis at {place} cannot be trusted: {error}; set ?tls_ca= to the authority's certificate")
    return BrokerUnavailable(f"Redis at {place} does not answer: {_reason(error)}")


def full(place: str) -> StoreFull:
    return StoreFull(f"Redis at {place} has reached its maxmemory and refuses new jobs: let workers catch up, or raise maxmemory")


def not_permitted(what: str, place: str) -> BrokerRefused:
    return BrokerRefused(
        f"Redis at {place} denies this user rights that taskflow needs: {what}; see the ACL in docs/how-to/configure-a-broker.md"
    )


def _of_answer(text: str, place: str) -> BrokerError:
    if "OOM" in text.split(":")[0] or "used memory > 'maxmemory'" in text:
        return full(place)
    word = text.split(" ", 1)[0].strip("-:")
    if word in _PASSING or any(f"{passing} " in text[:60] for passing in _PASSING):
        return BrokerUnavailable(f"Redis at {place} cannot run this now: {text}")
    if "WRONGTYPE" in text or any(sign in text for sign in _SPOILT):
        return BrokerRefused(f"Redis at {place} has a taskflow value that another program has changed: {re.sub(_OF_SCRIPT, '', text)}")
    if word in ("NOAUTH", "WRONGPASS", "ERR") and "AUTH" in text.upper():
        return BrokerRefused(f"Redis at {place} rejects this user and password: {text}")
    if "NOPERM" in text or "ACL failure" in text:
        return not_permitted(text, place)
    return BrokerRefused(f"Redis at {place} refuses: {text}")


_OF_SCRIPT: Final = r"^(ERR )?(user_script:\d+: )?(WRONGTYPE )?| script: [0-9a-f]{40}, on @user_script:\d+\.$"
"""Matches the text that the server adds before and after a script's error message."""


def _is_about_certificates(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
