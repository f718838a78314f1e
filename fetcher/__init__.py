"""VK community events on a Redis bus: each once, typed, in VK's order. This is what a consumer needs of it."""

from .events import Button, Event, Message, Peer, Reaction, Reply, User
from .subscriber import consume, subscribe

__version__ = "1.0.0"
__all__ = ["Button", "Event", "Message", "Peer", "Reaction", "Reply", "User", "consume", "subscribe"]
