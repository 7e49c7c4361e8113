"""Who may do what: bearer tokens, of which only digests are kept.

Secrets are 256 random bits, so a plain BLAKE2 digest is enough; they are compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from dpac_api.errors import Conflict, Denied, NotFound, Unauthenticated
from dpac_api.models import Model, Name, NewToken, TokenInfo
from dpac_engine.control.catalogue import Catalogue
from dpac_engine.control.catalogue_schema import TokenRow

Scope = Literal["admin", "operate", "read"]
_RANK = {"read": 0, "operate": 1, "admin": 2}
_HOW = "Name a token file with DPAC_TOKEN_FILE or a context; `dpac token create` makes tokens."
LAST_USED_RESOLUTION = timedelta(minutes=1)


class CreateToken(Model):
    """Make a token."""

    name: Name
    scope: Scope


class Authenticator:
    """Turns a bearer token into a scope."""

    def __init__(self, catalogue: Catalogue, admin_token: Path) -> None:
        self._catalogue = catalogue
        self._admin_token = admin_token

    def require(self, header: str | None, needed: Scope, now: datetime) -> str:
        """The name of the token in the `Authorization` header. Unauthenticated or Denied unless it has that scope or more. Blocks."""
        scheme, _, secret = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise Unauthenticated(f"The request carries no token. {_HOW}")
        known = self._known(secret.strip(), now)
        if known is None:
            raise Unauthenticated(f"The token is not, or no longer, valid on this site. {_HOW}")
        name, scope = known
        if _RANK[scope] < _RANK[needed]:
            raise Denied(f"The token's scope is {scope}, and this needs {needed}. Use a token with more scope.")
        return name

    def _known(self, secret: str, now: datetime) -> tuple[str, str] | None:
        """(Name, scope) of a token."""
        if self._is_admin(secret):
            return "admin", "admin"
        token_id = secret.removeprefix("dpac_").partition("_")[0]
        with self._catalogue.read() as session:
            row = session.get(TokenRow, token_id)
        if row is None or not hmac.compare_digest(row.digest, _digest(secret)):
            return None
        if row.last_used is None or now - row.last_used >= LAST_USED_RESOLUTION:
            self._note_use(token_id, now)
        return row.name, row.scope

    def _is_admin(self, secret: str) -> bool:
        """Read at every call, so that a replaced file counts at once."""
        try:
            expected = self._admin_token.read_text().strip()
        except FileNotFoundError:
            return False
        return bool(expected) and hmac.compare_digest(_digest(expected), _digest(secret))

    def _note_use(self, token_id: str, now: datetime) -> None:
        with self._catalogue.write() as session:
            row = session.get(TokenRow, token_id)
            if row is not None:
                row.last_used = now


def create_token(session: Session, create: CreateToken, now: datetime) -> NewToken:
    """A new token; its secret is in the answer and nowhere else."""
    if session.scalar(select(TokenRow).where(TokenRow.name == create.name)) is not None:
        raise Conflict(f"There is a token {create.name!r} already. Revoke it first, or choose another name.")
    token_id = secrets.token_hex(6)
    secret = f"dpac_{token_id}_{secrets.token_urlsafe(32)}"
    row = TokenRow(id=token_id, name=create.name, scope=create.scope, digest=_digest(secret), created=now)
    session.add(row)
    return NewToken(secret=secret, id=token_id, name=create.name, scope=create.scope, created=now)


def list_tokens(session: Session) -> list[TokenInfo]:
    """Every token, oldest first."""
    return [
        TokenInfo.model_validate(
            {"id": row.id, "name": row.name, "scope": row.scope, "created": row.created, "last_used": row.last_used}
        )
        for row in session.scalars(select(TokenRow).order_by(TokenRow.created))
    ]


def revoke_token(session: Session, token_id: str) -> None:
    """End a token at once, by id or name."""
    row = session.get(TokenRow, token_id) or session.scalar(select(TokenRow).where(TokenRow.name == token_id))
    if row is None:
        raise NotFound(f"There is no token {token_id!r}. `dpac token list` shows those there are.")
    session.delete(row)


def _digest(secret: str) -> str:
    return hashlib.blake2b(secret.encode(), digest_size=32).hexdigest()
