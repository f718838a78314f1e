"""The settings, read once from the environment and a `.env` file; the environment takes precedence."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from .bus import connection
from .errors import FatalError

REQUIRED = ("TOKEN", "GROUPID")
LEVELS = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
MAX_NUMBER = 10**9  # Redis accepts this wherever it takes a count or a number of seconds


class SettingsError(FatalError, ValueError):
    """Some settings are missing or wrong; the message names each of them in one sentence."""


def setting(name: str, default: str, *form: Any) -> Any:
    """Declare a setting with its default; `form` are the arguments of `value_of` after the text."""
    return field(metadata={"name": name, "default": default, "form": form})


def value_of(text: str, form: str | range = "(?s).*", must: str = "", read: Callable[[str], Any] = str) -> Any:
    """Return the value of a setting's text; raise ValueError, which says what the text must be, if it is wrong.

    If `form` is a pattern, the text must match it, and `read` makes the value from it. If `form` is a range, the text
    must be a number in it.
    """
    if isinstance(form, str) and re.fullmatch(form, text):
        return read(text)
    if isinstance(form, range) and re.fullmatch("[0-9]{1,19}", text) and int(text) in form:
        return int(text)
    raise ValueError(f"must {must or f'be a number from {form[0]} to {form[-1]}'}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Holds the settings; times are in seconds. The README says what each setting means."""

    token: str = setting("TOKEN", "", r"\s*[!-~]+\s*", "hold the community's access token", str.strip)
    group: int = setting("GROUPID", "", range(1, 2**63), "be the community's id, a positive number")
    redis_url: str = setting("REDIS_URL", "redis://localhost:6379/0", "(?s).*", "", connection.check)
    bus: str = setting("BUS", "events", "[A-Za-z0-9._:-]+", "be made of letters, digits, '.', '_', '-' and ':'")
    prefixes: str = setting("COMMAND_PREFIXES", "/!")
    stream_maxlen: int = setting("STREAM_MAXLEN", "100000", range(1, MAX_NUMBER + 1))
    names_ttl: int = setting("NAMES_TTL", "600", range(MAX_NUMBER + 1))
    poll_wait: int = setting("POLL_WAIT", "25", range(1, 91))
    renew_after: int = setting("RENEW_AFTER", "3600", range(1, MAX_NUMBER + 1))
    log_level: str = setting("LOG_LEVEL", "INFO", f"(?ai){LEVELS}", f"be one of {LEVELS}", str.upper)
    raw: bool = setting("RAW", "0", "[01]", "be 0 or 1", lambda text: text == "1")
    metrics_port: int = setting("METRICS_PORT", "0", range(2**16))  # 0: no metrics


def read(environment: Mapping[str, str], needed: Collection[str] = REQUIRED) -> Config:
    """Return the settings from the environment and `.env`; see `parse` for `needed` and what is raised."""
    try:
        file = dotenv_values(".env", interpolate=False)
    except (OSError, ValueError) as error:
        raise SettingsError(f".env cannot be read ({type(error).__name__}): fix or remove it") from None
    return parse(file | {name: value for name, value in environment.items() if value}, needed)


def parse(given: Mapping[str, str | None], needed: Collection[str] = REQUIRED) -> Config:
    """Return the settings; an empty one counts as absent. Raise SettingsError if any is missing or wrong.

    A required setting that is not `needed` may be absent; the token is then "", and the community 0.
    """
    values: dict[str, Any] = {"token": "", "group": 0}
    wrong: list[str] = []
    for one in fields(Config):
        name = one.metadata["name"]
        text, is_needed = given.get(name) or one.metadata["default"], name in needed
        try:
            if name == "TOKEN" and (path := given.get("TOKEN_FILE")):
                name = "TOKEN_FILE"
                text = Path(path).read_text(encoding="utf-8-sig")
            if text or is_needed:
                values[one.name] = value_of(text, *one.metadata["form"])
        except (OSError, UnicodeError) as error:
            wrong.append(f"{name} cannot be read ({type(error).__name__})")
        except ValueError as error:
            wrong.append(f"{name} {error}")
    if wrong:
        raise SettingsError("; ".join(wrong) + ": fix this in the environment or in .env")
    return Config(**values)
