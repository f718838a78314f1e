"""VK community events on a Redis bus: each once, typed, in VK's order. This is what a consumer needs of it."""

from typing import TYPE_CHECKING, Any

from .events import Action, Button, Event, Message, Peer, Reaction, Reply, User

if TYPE_CHECKING:
    from .subscriber import consume, subscribe

__version__ = "1.1.0"
__all__ = ["Action", "Button", "Event", "Message", "Peer", "Reaction", "Reply", "User", "consume", "subscribe"]


def __getattr__(name: str) -> Any:
    """Load `consume` and `subscribe` when they are first wanted: the nouns alone need no Redis client."""
    if name in ("consume", "subscribe"):
        from . import subscriber

        return getattr(subscriber, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
