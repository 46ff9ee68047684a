"""Removal of secrets from text that is stored, logged or printed."""

from __future__ import annotations

import re

HIDDEN = "***"
# This matches user:password@, whatever characters the password has, and token@.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s'\"/@]*:[^\s'\"]*|[^\s'\"/]*)@")
_PARAMETER = re.compile(
    r"([?&;](?:[\w.-]*(?:token|passw(?:or)?d|passphrase|pwd|secret|credential|signature|auth"
    r"|api[_-]?key|access[_-]?key)[\w.-]*|sig|key)=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Hide the user information and the secret parameters of every URI in `text`."""
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _USER_INFO.sub(f"{HIDDEN}@", text))
