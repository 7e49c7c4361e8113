"""docs/: no condition that a status can have is undocumented."""

from __future__ import annotations

import re
from pathlib import Path

from dpac_engine.control.group_status import _TARGET_CONDITIONS

ROOT = Path(__file__).parents[2]


def test_every_condition_is_documented() -> None:
    """Its name is what people look for."""
    code = "\n".join(path.read_text() for path in (ROOT / "engine" / "dpac_engine").rglob("*.py"))
    docs = "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    used = set(re.findall(r'\b(?:type=|condition\(\s*)"([A-Z][A-Za-z]+)"', code)) | set(_TARGET_CONDITIONS.values())
    used |= {"MemberMissing", "MemberReplaced", "MemberFailed"}
    assert {"JournalFailed", "SpoolFull", "ClockStepped", "TargetMissing"} <= used
    assert {name for name in used if f"`{name}`" not in docs} == set()
