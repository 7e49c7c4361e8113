"""Declared resources from what Pulumi prints: `pulumi preview --json`, or `pulumi stack export`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dpac_api.errors import Invalid
from dpac_policy.declared import UNKNOWN, Declared, kind_of, name_of

_UNKNOWN_TEXT = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
_MASKED_TEXT = "[secret]"
_SIGNATURE = "4dabf18193072939515e22adb298388d"
"""A key that marks an object as a secret, an asset or a reference to another resource."""
_DELETIONS = ("delete", "delete-replaced", "discard", "discard-replaced", "remove-pending-replace")


def read_document(text: str) -> list[Declared]:
    """The resources that rules are about, as they are going to be. Invalid if the text is neither document, or not whole."""
    document = _parse(text)
    if isinstance(document.get("steps"), list) or "changeSummary" in document:
        states = _of_preview(document)
    elif isinstance(document.get("deployment"), Mapping):
        states = [held for held in document["deployment"].get("resources") or [] if not held.get("delete")]
    else:
        raise Invalid(
            "The document is neither a preview nor a stack: make it with `pulumi preview --json --show-sames` or "
            "`pulumi stack export`."
        )
    found = {state.get("urn"): declared for state in states if (declared := _declared(state)) is not None}
    return list(found.values())


def _parse(text: str) -> dict[str, Any]:
    try:
        # A preview that was told to be verbose prints lines before and after the document.
        document, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
    except ValueError as error:
        raise Invalid(
            f"The document is not JSON ({error}). Let `pulumi preview --json --show-sames` write it."
        ) from None
    return document if isinstance(document, dict) else {}


def _of_preview(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    steps = [step for step in document.get("steps") or [] if isinstance(step, Mapping)]
    failed = [said.get("message", "") for said in document.get("diagnostics") or [] if said.get("severity") == "error"]
    if failed:
        raise Invalid(f"The preview failed, so it does not tell everything: {failed[0].strip()}")
    same = (document.get("changeSummary") or {}).get("same", 0)
    if same > sum(step.get("op") == "same" for step in steps):
        raise Invalid(
            "The preview leaves unchanged resources out, so they cannot be checked. "
            "Make it with `pulumi preview --json --show-sames`."
        )
    return [step.get("newState") or {} for step in steps if step.get("op") not in _DELETIONS]


def _declared(state: Mapping[str, Any]) -> Declared | None:
    kind = kind_of(str(state.get("type")))
    if kind is None:
        return None
    urn = str(state["urn"])
    # Inputs are what is declared; outputs add what a drill has found.
    properties = {**(state.get("outputs") or {}), **(state.get("inputs") or {})}
    return Declared(kind, name_of(urn, kind), urn, {key: _plain(value) for key, value in properties.items()})


def _plain(value: Any) -> Any:
    if value in (_UNKNOWN_TEXT, _MASKED_TEXT) or (isinstance(value, Mapping) and _SIGNATURE in value):
        return UNKNOWN
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
