"""The one error tree of dpac.

Every failure that leaves a room of the house is one of these. Each class fixes
what a caller may do about it: retry (`Temporary`), correct the request
(`Invalid`), look again (`Conflict`), or stop and call for help (`Corruption`).

    DpacError                exit  1   HTTP 500
    ├── Invalid              exit  2   HTTP 422   the request is wrong; nothing was changed
    ├── NotFound             exit  3   HTTP 404   this site knows no such thing
    ├── Conflict             exit  4   HTTP 409   it exists, is in use, or changed meanwhile
    │   └── WrongSite        exit  5   HTTP 421   another site answered than the state names
    ├── Denied               exit  6   HTTP 403   the token may not do this
    │   └── Unauthenticated  exit  6   HTTP 401   no valid token
    ├── Unsupported          exit  7   HTTP 501   client and backend versions, or a feature, do not match
    ├── Temporary            exit 10   HTTP 503   try again; retried by the client
    │   ├── Unreachable      exit 11   HTTP 503   no answer at all
    │   └── TimedOut         exit 12   HTTP 504   a deadline passed
    ├── Corruption           exit 20   HTTP 500   stored bytes are not what was written
    └── Unrecoverable        exit 21   HTTP 409   no checkpoint satisfies the request

Every message says what is wrong, where, and what to do next.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DpacError(Exception):
    """Root of the tree.

    `message` says what is wrong and what to do next; `property_path` names the
    offending input (`members.disk.size`) where there is one.
    """

    code: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, property_path: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.property_path = property_path

    def to_wire(self) -> dict[str, Any]:
        """The JSON body `{"error": {"code", "message", "property_path"}}` of an HTTP answer."""
        return {"error": {"code": self.code, "message": self.message, "property_path": self.property_path}}


class Invalid(DpacError):
    """The request is wrong; nothing was changed. Correct it and send it again."""

    code = "invalid"
    http_status = 422
    exit_code = 2


class NotFound(DpacError):
    """This very site knows no such thing."""

    code = "not_found"
    http_status = 404
    exit_code = 3


class Conflict(DpacError):
    """It exists already, belongs to another owner, is in use, or changed meanwhile."""

    code = "conflict"
    http_status = 409
    exit_code = 4


class WrongSite(Conflict):
    """Another site answered than the one the state names; nothing may be concluded about the resource."""

    code = "wrong_site"
    http_status = 421
    exit_code = 5


class Denied(DpacError):
    """The token is valid but may not do this."""

    code = "denied"
    http_status = 403
    exit_code = 6


class Unauthenticated(Denied):
    """No token, or not a valid one."""

    code = "unauthenticated"
    http_status = 401


class Unsupported(DpacError):
    """Client and backend versions do not overlap, or the format has a required feature this build lacks."""

    code = "unsupported"
    http_status = 501
    exit_code = 7


class Temporary(DpacError):
    """It may work a moment later; clients retry it with back-off."""

    code = "temporary"
    http_status = 503
    exit_code = 10


class Unreachable(Temporary):
    """Nothing answered. Says nothing about what lies there."""

    code = "unreachable"
    exit_code = 11


class TimedOut(Temporary):
    """A deadline passed; what was asked for may still happen."""

    code = "timed_out"
    http_status = 504
    exit_code = 12


class Corruption(DpacError):
    """Stored bytes are not what was written. Never served, never retried."""

    code = "corruption"
    exit_code = 20


class Unrecoverable(DpacError):
    """No checkpoint satisfies the request."""

    code = "unrecoverable"
    http_status = 409
    exit_code = 21


def _tree(root: type[DpacError]) -> dict[str, type[DpacError]]:
    # A subclass without a code of its own is somebody's private refinement: on the wire it is its parent.
    found = {root.code: root} if "code" in vars(root) else {}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


def from_wire(status: int, body: Any) -> DpacError:
    """The error that an HTTP answer carries.

    An answer without the error body (a proxy's page, a crash) is `Temporary`
    for 502, 503 and 504 and the root class otherwise: never `NotFound`, which
    only the backend itself may say.
    """
    detail = body.get("error") if isinstance(body, dict) else None
    if not isinstance(detail, dict) or "message" not in detail:
        kind: type[DpacError] = Temporary if status in (502, 503, 504) else DpacError
        return kind(
            f"The endpoint answered HTTP {status} without a dpac error body. "
            "Check that DPAC_ENDPOINT points at a dpac backend and not at a proxy."
        )
    kind = _tree(DpacError).get(str(detail.get("code")), DpacError)
    return kind(str(detail["message"]), property_path=detail.get("property_path"))
