"""The settings, read once: from the environment, or from a `.env` file where the environment says nothing."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from .bus import connection

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
REQUIRED = ("TOKEN", "GROUPID")
MAX_NUMBER = 10**9  # what Redis takes everywhere as a count or as seconds


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings; times are in seconds. What each means stands in the README."""

    token: str
    group: int
    redis_url: str
    bus: str
    prefixes: str
    stream_maxlen: int
    names_ttl: int
    poll_wait: int
    renew_after: int
    log_level: str
    raw: bool
    metrics_port: int | None

    def secrets(self) -> list[str]:
        """Return what must never be printed: the token and the passwords of Redis."""
        return [secret for secret in (self.token, *connection.passwords(self.redis_url)) if secret]


def read(environment: Mapping[str, str], needed: Collection[str] = REQUIRED) -> Config:
    """Return the settings of the environment and `.env`, as `parse` does."""
    try:
        given = {name: value for name, value in dotenv_values(".env", interpolate=False).items() if value}
    except (OSError, ValueError) as error:
        return parse(environment, needed, [f".env cannot be read ({type(error).__name__})"])
    return parse(given | {name: value for name, value in environment.items() if value}, needed)


def parse(given: Mapping[str, str], needed: Collection[str] = REQUIRED, wrong: list[str] | None = None) -> Config:
    """Return these settings; raise ValueError with one sentence that names every wrong one, with those in `wrong`.

    Required settings that are not `needed` may be absent: the token is "" then, and the community 0.
    """
    given = {name: value for name, value in given.items() if value}
    wrong = wrong or []

    def number(name: str, default: int | None, least: int, most: int, what: str = "") -> int:
        text = given.get(name, "" if default is None else str(default))
        if re.fullmatch("[0-9]{1,19}", text) and least <= int(text) <= most:
            return int(text)
        wrong.append(f"{name} must be {what or f'a number from {least} to {most}'}")
        return least

    def matching(name: str, default: str, pattern: str, what: str) -> str:
        text = given.get(name, default)
        if not re.fullmatch(pattern, text):
            wrong.append(f"{name} must be {what}")
        return text

    token = given.get("TOKEN", "").strip()
    if path := given.get("TOKEN_FILE"):
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            wrong.append(f"TOKEN_FILE cannot be read ({type(error).__name__})")
            needed = [name for name in needed if name != "TOKEN"]
    if "TOKEN" in needed and not re.fullmatch("[!-~]+", token):
        wrong.append(("TOKEN_FILE" if path else "TOKEN") + " must hold the community's access token")

    url = given.get("REDIS_URL", "redis://localhost:6379/0")
    try:
        connection.check(url)
    except ValueError as error:
        wrong.append(f"REDIS_URL must be an address like redis://user:password@host:6379/0 ({error})")

    group = 0
    if "GROUPID" in needed or "GROUPID" in given:
        group = number("GROUPID", None, 1, 2**63 - 1, "the community's id, a positive number")
    config = Config(
        token=token,
        group=group,
        redis_url=url,
        bus=matching("BUS", "events", "[A-Za-z0-9._:-]+", "made of letters, digits, '.', '_', '-' and ':'"),
        prefixes=given.get("COMMAND_PREFIXES", "/!"),
        stream_maxlen=number("STREAM_MAXLEN", 100_000, 1, MAX_NUMBER),
        names_ttl=number("NAMES_TTL", 600, 0, MAX_NUMBER),
        poll_wait=number("POLL_WAIT", 25, 1, 90),
        renew_after=number("RENEW_AFTER", 3600, 1, MAX_NUMBER),
        log_level=matching("LOG_LEVEL", "INFO", f"(?i:{'|'.join(LEVELS)})", f"one of {', '.join(LEVELS)}").upper(),
        raw=matching("RAW", "0", "[01]", "0 or 1") == "1",
        metrics_port=number("METRICS_PORT", 0, 0, 65535) or None,
    )
    if wrong:
        raise ValueError("; ".join(wrong) + ": fix this in the environment or in .env")
    return config
