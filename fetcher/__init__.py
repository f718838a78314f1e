"""VK community events on a Redis bus: each once, typed, in VK's order. The names here are what a consumer needs."""

TYPE_CHECKING = False  # not imported from typing: that takes milliseconds in which no signal is handled yet
if TYPE_CHECKING:
    from .consumers.blocking import consume, subscribe
    from .events import Action, Button, Event, Message, Peer, Reaction, Reply, User

__version__ = "1.2.0"
__all__ = ["Action", "Button", "Event", "Message", "Peer", "Reaction", "Reply", "User", "consume", "subscribe"]


def __getattr__(name: str) -> object:
    """Import each name when it is first used.

    So event classes can be imported without a Redis client, and the fetcher without the consumers.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = ".consumers.blocking" if name in ("consume", "subscribe") else ".events"
    return getattr(import_module(module, __name__), name)
