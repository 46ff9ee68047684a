"""Text without the secrets that it quotes, for all that is stored, logged or printed."""

from __future__ import annotations

import re

HIDDEN = "***"
# user:password@, whatever the password holds, or token@.
_USER_INFO = re.compile(r"(?<=://)(?:[^\s'\"/@]*:[^\s'\"]*|[^\s'\"/]*)@")
_PARAMETER = re.compile(
    r"([?&;](?:[\w.-]*(?:token|passw(?:or)?d|passphrase|pwd|secret|credential|signature|auth"
    r"|api[_-]?key|access[_-]?key)[\w.-]*|sig|key)=)[^&;#\s'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` with the user information and the secret parameters of every URI in it hidden."""
    return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _USER_INFO.sub(f"{HIDDEN}@", text))
