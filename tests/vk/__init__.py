"""VK as its clients see it: the API and the Bots Long Poll, over real HTTP on loopback, faults included.

In a test, use `with VK() as vk:`; for a benchmark, run it in a process of its own: `python -m tests.vk --help`.
"""

from fetcher.commands.demo import inner_calls
from tests.vk.methods import FIRST, LAST, LATIN, METHODS, RequestRejected, community, conversation, numbers, person
from tests.vk.server import TOKEN, VK, Fault, Request
from tests.vk.updates import CHAT, GROUP, PEER, PERSON, button, error, message, reaction, traffic, update

__all__ = [
    "CHAT",
    "FIRST",
    "GROUP",
    "LAST",
    "LATIN",
    "METHODS",
    "PEER",
    "PERSON",
    "TOKEN",
    "VK",
    "Fault",
    "Request",
    "RequestRejected",
    "button",
    "community",
    "conversation",
    "error",
    "inner_calls",
    "message",
    "numbers",
    "person",
    "reaction",
    "traffic",
    "update",
]
