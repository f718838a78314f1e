"""The settings, read once: from the environment, or from a `.env` file where the environment says nothing."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import redis
from dotenv import dotenv_values

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
MOST = 10**9  # what Redis takes everywhere as a count or as seconds


class Config(NamedTuple):
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

    def secrets(self) -> list[str]:
        """Return what must never be printed: the token and Redis's password, as it is and as the address spells it."""
        passed = redis.ConnectionPool.from_url(self.redis_url).connection_kwargs.get("password")
        return [secret for secret in (self.token, passed, urlsplit(self.redis_url).password) if secret]


def read(environment: Mapping[str, str], token_needed: bool = True) -> Config:
    """Return the settings; raise ValueError with one sentence that names every wrong one."""
    wrong: list[str] = []
    try:
        given = {name: value for name, value in dotenv_values(".env", interpolate=False).items() if value}
    except (OSError, ValueError) as error:
        wrong.append(f".env cannot be read ({type(error).__name__})")
        given = {}
    given |= {name: value for name, value in environment.items() if value}

    def number(name: str, default: int | None, least: int, most: int = MOST) -> int:
        text = given.get(name, str(default or ""))
        if re.fullmatch("[0-9]{1,10}", text) and least <= int(text) <= most:
            return int(text)
        wrong.append(
            f"{name} must be "
            + (f"a number from {least} to {most}" if default else "the community's id, a positive number")
        )
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
            token_needed = False
    if token_needed and not re.fullmatch("[!-~]+", token):
        wrong.append(("TOKEN_FILE" if path else "TOKEN") + " must hold the community's access token")

    url = given.get("REDIS_URL", "redis://localhost:6379/0")
    try:
        redis.ConnectionPool.from_url(url).make_connection()
    except Exception as error:  # whatever redis-py raises for an address that it cannot use
        wrong.append(f"REDIS_URL must be an address like redis://user:password@host:6379/0 ({type(error).__name__})")

    config = Config(
        token=token,
        group=number("GROUPID", None, 1, 2**63),
        redis_url=url,
        bus=matching("BUS", "events", "[A-Za-z0-9._:-]+", "made of letters, digits, '.', '_', '-' and ':'"),
        prefixes=given.get("COMMAND_PREFIXES", "/!"),
        stream_maxlen=number("STREAM_MAXLEN", 100_000, 1),
        names_ttl=number("NAMES_TTL", 600, 0),
        poll_wait=number("POLL_WAIT", 25, 1, 90),
        renew_after=number("RENEW_AFTER", 3600, 1),
        log_level=matching("LOG_LEVEL", "INFO", f"(?i:{'|'.join(LEVELS)})", f"one of {', '.join(LEVELS)}").upper(),
    )
    if wrong:
        raise ValueError("; ".join(wrong) + ": mend this in the environment or in .env")
    return config


def parse(given: Mapping[str, str]) -> Config:
    """Stand in for config.parse, which reads no file."""
    redis_url, maxlen, level = given["REDIS_URL"], int(given["STREAM_MAXLEN"]), given["LOG_LEVEL"]
    return Config(given["TOKEN"], int(given["GROUPID"]), redis_url, "events", "/!", maxlen, 600, 25, 3600, level)
