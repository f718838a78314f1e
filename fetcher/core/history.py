"""Value types that the loop shares with VK's side and the bus: positions, VK's answers, names, entries, outcomes."""

import re
from typing import Any, NamedTuple, Self


class Position(NamedTuple):
    """A place in VK's history; positions are compared as tuples.

    `epoch` counts how often VK has restarted its numbering, `ts` is VK's number, and `part` counts the updates after
    `ts` that are included, if what follows `ts` is committed in pieces. On the bus a position is text that leaves out
    an epoch or a part of 0: "12345", "12345+500", "1:30", "1:30+500".
    """

    epoch: int
    ts: int
    part: int = 0

    def __str__(self) -> str:
        """Return the text that stands for this position on the bus."""
        return f"{self.epoch}:" * bool(self.epoch) + str(self.ts) + f"+{self.part}" * bool(self.part)

    def followed_by(self, ts: int) -> Self:
        """Return the position at which VK goes on with `ts`; a lower ts is in the next epoch."""
        return type(self)(self.epoch + (ts < self.ts), ts)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that a text on the bus stands for; raise ValueError if it is not a position."""
        found = re.fullmatch(r"(?:([0-9]{1,9}):)?([0-9]{1,30})(?:\+([0-9]{1,9}))?", text)
        if not found:
            raise ValueError("not a position")
        return cls(*(int(number or 0) for number in found.groups()))


class Answer(NamedTuple):
    """VK's answer to a poll: the updates after the ts `since`, up to and including `until`; `size` is in bytes.

    `since` is usually the ts that was polled. If VK no longer has the updates between the two, `gap` says why. If
    `since` is lower than the ts that was polled, or `until` is lower than `since`, VK has restarted its numbering; then
    `gap` may be empty.
    """

    since: int
    until: int
    updates: list[Any]
    size: int = 0
    gap: str = ""


class Name(NamedTuple):
    """The name of a person, community or chat; a chat has only `name`, and all fields are empty if VK knows none."""

    name: str = ""
    firstname: str = ""
    lastname: str = ""
    nick: str = ""


class Entry(NamedTuple):
    """An event as it is published: `text` is its JSON in UTF-8, `date` when VK says it was sent (Unix time), or 0."""

    id: str
    event_type: str
    text: bytes
    date: int = 0


class DeadLetter(NamedTuple):
    """A record of a malformed update, a gap or a lost checkpoint.

    `id` goes to `seen`, unless it is ""; `fields` are the entry in the stream of dead letters.
    """

    id: str
    fields: dict[str, str]


class Outcome(NamedTuple):
    """What the bus did with a commit: the checkpoint afterwards, if there is one, and the entries that it recorded.

    `left_out` is how many updates it did not publish because they came so late that `seen` may have forgotten them.
    """

    checkpoint: Position | None
    recorded: list[Entry | DeadLetter]
    left_out: int = 0
