"""The nouns of the loop: what VK answers, and what goes to the bus for it. A leaf: it imports nothing of ours."""

from typing import Any, Literal, NamedTuple


class Batch(NamedTuple):
    """VK's updates after the ts `since`, up to and including `until`; `size` is VK's answer in bytes."""

    since: str
    until: str
    updates: list[Any]
    size: int = 0


class Gap(NamedTuple):
    """A part of VK's history, after `since` and up to `until`, that cannot be had; `error` says why."""

    since: str
    until: str
    error: str


class Entry(NamedTuple):
    """An event as it is published: `text` is its JSON in UTF-8, `date` when VK says it was sent (Unix time), or 0."""

    id: str
    event_type: str
    text: bytes
    date: int = 0


class DeadLetter(NamedTuple):
    """What cannot be published: `id` is remembered in `seen` ("" is not), `fields` are the entry of the stream."""

    id: str
    fields: dict[str, str]


class Commit(NamedTuple):
    """What goes to the bus in one atomic step; what each kind does stands in backlog.py.

    `completes` is how many pending items are on the bus afterwards, 0 for a part of one; `keep` is how many event_ids
    the bus has to remember, 0 to remember all for now; `size` is in bytes.
    """

    kind: Literal["batch", "repeat", "late", "gap", "restore"]
    since: str
    until: str
    entries: list[Entry | DeadLetter]
    completes: int
    keep: int
    size: int


def utf8(text: str) -> bytes:
    """Encode; what no UTF-8 can carry, as half a surrogate pair, becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
