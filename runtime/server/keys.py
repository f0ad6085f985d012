"""Who is asking: API keys, what they open, and whose cache a request reads.

Invariants: keys are compared in constant time and never shown; without an admin key the admin
routes are closed; requests of different keys never share a cached prefix, so that nobody can find
out by time what others have asked.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from branchline.runtime.server.errors import Refused


class Access(Enum):
    """What a route asks for. SHARED concerns what all callers share: an admin key, but nothing
    where there are no keys, since everybody is the same caller there.
    """

    OPEN = "open"
    NORMAL = "normal"
    SHARED = "shared"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        tenant: part of the prefix cache's namespace; "" where there are no keys.
    """

    tenant: str = ""
    is_admin: bool = False

    def namespace(self, extra: str = "") -> str:
        """Prefix-cache namespace of this caller's requests; `extra` is a salt of their own."""
        return f"{self.tenant}/{extra}" if extra else self.tenant

    def owns(self, namespace: str) -> bool:
        """Whether what runs there is this caller's to look at."""
        own = namespace == self.tenant or namespace.startswith(f"{self.tenant}/")
        return own or self.is_admin


class Keys:
    """The server's API keys.

    Args:
        normal: keys for all but admin routes; with none, these routes are open to everybody.
        admin: keys for all routes.
    """

    def __init__(self, normal: tuple[str, ...] = (), admin: tuple[str, ...] = ()) -> None:
        self._callers = [
            *((_digest(key), Caller(_tenant(key), is_admin=True)) for key in admin),
            *((_digest(key), Caller(_tenant(key))) for key in normal),
        ]
        self._needed = bool(normal)
        self._has_admin = bool(admin)

    @property
    def needed(self) -> bool:
        """Whether a request needs a key at all."""
        return self._needed

    def asked(self, access: Access) -> Access:
        """What a route of this `access` asks for here; never SHARED."""
        if access is not Access.SHARED:
            return access
        return Access.ADMIN if self._callers else Access.NORMAL

    def __repr__(self) -> str:
        return f"Keys({len(self._callers)} keys)"

    def identify(self, headers: Mapping[str, str], access: Access) -> Caller:
        """The caller of a request to a route of this `access`.

        Raises:
            Refused: 401 without a key that is known, 403 where the key is not enough.
        """
        caller = self._caller(headers)
        if access is Access.OPEN:
            return caller or Caller()
        if caller is None and self._needed:
            raise Refused(
                401,
                "this server asks for an API key, and the request brings none that it knows",
                hint="Send 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            )
        caller = caller or Caller()
        if self.asked(access) is Access.ADMIN:
            self.require_admin(caller)
        return caller

    def require_admin(self, caller: Caller) -> None:
        """Raise `Refused` (403) for anybody but an admin."""
        if not caller.is_admin:
            hint = (
                "Send an admin key."
                if self._has_admin
                else "Start the server with an admin key to open what is for admins."
            )
            raise Refused(403, "this is for admins", hint=hint)

    def _caller(self, headers: Mapping[str, str]) -> Caller | None:
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not key:
            return None
        digest = _digest(key)
        found: Caller | None = None
        for known, caller in self._callers:  # all of them, or time would tell which
            if hmac.compare_digest(known, digest) and found is None:
                found = caller
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _tenant(key: str) -> str:
    return hashlib.sha256(b"branchline tenant\0" + key.encode("utf-8")).hexdigest()[:32]
