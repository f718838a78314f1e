"""The settings, read once: from the environment, or from a `.env` file where the environment has nothing."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from .bus import connection
from .errors import FatalError

REQUIRED = ("TOKEN", "GROUPID")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MAX_NUMBER = 10**9  # Redis accepts it everywhere as a count or as seconds


class SettingsError(FatalError, ValueError):
    """Some settings are missing or wrong; the message is one sentence that names each."""


def setting(name: str, default: str, read: Callable[[str], Any], absent: Any = MISSING) -> Any:
    """Declare a setting with its default, and `absent` for a required one that a command does not need.

    `read` returns the value of a text; it raises ValueError with what the text must be.
    """
    return field(default=absent, metadata={"name": name, "default": default, "read": read})


def number(least: int, most: int, what: str = "") -> Callable[[str], int]:
    """Return a function that reads a number within these limits."""

    def read(text: str) -> int:
        if re.fullmatch("[0-9]{1,19}", text) and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"must be {what or f'a number from {least} to {most}'}")

    return read


def matching(pattern: str, what: str) -> Callable[[str], str]:
    """Return a function that reads text of this form."""

    def read(text: str) -> str:
        if re.fullmatch(pattern, text):
            return text
        raise ValueError(f"must {what}")

    return read


read_token = matching("[!-~]+", "hold the community's access token")
read_bus = matching("[A-Za-z0-9._:-]+", "be made of letters, digits, '.', '_', '-' and ':'")
read_level = matching("|".join(LEVELS), f"be one of {', '.join(LEVELS)}")
read_id = number(1, 2**63 - 1, "the community's id, a positive number")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings; times are in seconds. The README says what each means."""

    token: str = setting("TOKEN", "", lambda text: read_token(text.strip()), absent="")
    group: int = setting("GROUPID", "", read_id, absent=0)
    redis_url: str = setting("REDIS_URL", "redis://localhost:6379/0", connection.check)
    bus: str = setting("BUS", "events", read_bus)
    prefixes: str = setting("COMMAND_PREFIXES", "/!", str)
    stream_maxlen: int = setting("STREAM_MAXLEN", "100000", number(1, MAX_NUMBER))
    names_ttl: int = setting("NAMES_TTL", "600", number(0, MAX_NUMBER))
    poll_wait: int = setting("POLL_WAIT", "25", number(1, 90))
    renew_after: int = setting("RENEW_AFTER", "3600", number(1, MAX_NUMBER))
    log_level: str = setting("LOG_LEVEL", "INFO", lambda text: read_level(text.upper()))
    raw: bool = setting("RAW", "0", lambda text: number(0, 1, "0 or 1")(text) == 1)
    metrics_port: int | None = setting("METRICS_PORT", "0", lambda text: number(0, 65535)(text) or None)

    def secrets(self) -> list[str]:
        """Return what must never be printed: the token and the passwords of Redis."""
        return [secret for secret in (self.token, *connection.passwords(self.redis_url)) if secret]


NAMES = ("TOKEN_FILE", *(one.metadata["name"] for one in fields(Config)))


def read(environment: Mapping[str, str], needed: Collection[str] = REQUIRED) -> Config:
    """Return the settings of the environment and `.env`, as `parse` does."""
    try:
        file = dotenv_values(".env", interpolate=False)
    except (OSError, ValueError) as error:
        raise SettingsError(f".env cannot be read ({type(error).__name__}): fix or remove it") from None
    return parse(file | {name: value for name, value in environment.items() if value}, needed)


def parse(given: Mapping[str, str | None], needed: Collection[str] = REQUIRED) -> Config:
    """Return these settings, of which empty ones count as absent; raise SettingsError if any of them is wrong.

    A required setting that is not `needed` may be absent: the token is "" then, and the community 0.
    """
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for one in fields(Config):
        name = one.metadata["name"]
        text, is_needed = given.get(name) or one.metadata["default"], name in needed
        try:
            if name == "TOKEN" and (path := given.get("TOKEN_FILE")):
                name = "TOKEN_FILE"
                text = Path(path).read_text(encoding="utf-8")
            if text or is_needed:
                values[one.name] = one.metadata["read"](text)
        except (OSError, UnicodeError) as error:
            wrong.append(f"{name} cannot be read ({type(error).__name__})")
        except ValueError as error:
            wrong.append(f"{name} {error}")
    if wrong:
        raise SettingsError("; ".join(wrong) + ": fix this in the environment or in .env")
    return Config(**values)
