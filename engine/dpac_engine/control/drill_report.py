"""Drill reports are signed, so that months later nobody has to take them on trust."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from binascii import Error as Base64Error

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from dpac_api.errors import Corruption, Invalid
from dpac_api.models import DrillReport
from dpac_engine.control.recovery import Signer


def canonical(report: DrillReport) -> bytes:
    """What is signed: every field but the signature, as JSON with sorted keys and no spaces, in UTF-8."""
    fields = report.model_dump(mode="json", exclude={"signature"})
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sign(report: DrillReport, signer: Signer) -> DrillReport:
    """The report with public key and signature."""
    named = report.model_copy(update={"public_key": b64encode(signer.public_key).decode()})
    return named.model_copy(update={"signature": b64encode(signer.sign(canonical(named))).decode()})


def check(report: DrillReport, public_key: str | None = None) -> None:
    """Corruption unless the report is exactly what was signed, by `public_key` (Base64) where that is given."""
    if not report.signature:
        raise Invalid("The report is not signed. Ask the site for it again: `dpac operation show ID`.")
    if public_key is not None and public_key != report.public_key:
        raise Corruption(
            f"The report was signed with another key ({report.public_key}) than {public_key}. Ask the site whose key it is."
        )
    try:
        key = Ed25519PublicKey.from_public_bytes(b64decode(report.public_key, validate=True))
        key.verify(b64decode(report.signature, validate=True), canonical(report))
    except (InvalidSignature, Base64Error, ValueError):
        raise Corruption(
            "The signature does not match the report: it was changed after it was signed. Do not rely on it."
        ) from None
