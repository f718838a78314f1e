"""The Lua scripts of the commands: each is one atomic step, or a question. The fetcher's own is commit.lua."""

from pathlib import Path
from typing import Any

from .bus import Bus
from .connection import redis_errors


def run_script(bus: Bus, name: str, keys: list[str], *arguments: Any) -> Any:
    """Run the script of this name on Redis and return its answer. It raises what the methods of the bus raise."""
    text = Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8")
    with redis_errors():
        return bus.client.register_script(text)(keys, arguments)
