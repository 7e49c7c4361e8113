"""A site, its versions, its tokens."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from dpac_api.models.fields import Model, Uid

API_VERSION = 1
"""The version of this wire format that this client and this backend speak best."""
API_VERSION_OLDEST = 1
"""The oldest version this backend still answers."""


class SiteInfo(Model):
    """Who answers at an endpoint."""

    site_uid: Uid
    name: str
    version: str
    api_version: int = API_VERSION
    api_version_oldest: int = API_VERSION_OLDEST


class TokenInfo(Model):
    """A token without its secret."""

    id: str
    name: str
    scope: Literal["admin", "operate", "read"]
    created: datetime
    last_used: datetime | None = None


class NewToken(TokenInfo):
    """A token at the only moment its secret is known."""

    secret: str
