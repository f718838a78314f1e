"""Redis in memory: what the fetcher keeps there, and commit.lua once more in Python."""

from collections.abc import Callable
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

TRIM_EVERY = 256  # event_ids: commit.lua trims `seen` when so many have been added


class Refused(ResponseError):
    """What the script asks before its first write is refused."""


class Letters(NamedTuple):
    """An entry of the dead letters: names and values, in turns."""

    fields: tuple[str, ...]

    def get(self, name: str) -> str | None:
        return dict(zip(self.fields[::2], self.fields[1::2], strict=True)).get(name)


class Copy(NamedTuple):
    """The state at one moment; lists only grow, so their lengths are enough."""

    checkpoint: str
    lengths: tuple[int, int, int]
    seen: dict[str, int]
    score: int


class Store:
    """The keys of one bus. `commit` is the script; `on_commit` is told what it has done."""

    def __init__(self) -> None:
        self.checkpoint = ""
        self.seen: dict[str, int] = {}  # ids in the order of their scores
        self.score = 0
        self.stream: list[tuple[str, str]] = []  # event_id, JSON
        self.dead: list[Letters] = []
        self.published: list[tuple[str, str]] = []  # channel, JSON
        self.refused: Callable[[], str] = str  # why the server refuses a script, if it does
        self.on_move: Callable[[str, str], None] = lambda old, new: None
        self.on_left_out: Callable[[list[str]], None] = lambda ids: None

    def copy(self) -> Copy:
        lengths = len(self.stream), len(self.dead), len(self.published)
        return Copy(self.checkpoint, lengths, dict(self.seen), self.score)

    def restore(self, copy: Copy) -> None:
        self.checkpoint, (stream, dead, published), self.seen = copy.checkpoint, copy.lengths, dict(copy.seen)
        self.score = copy.score
        del self.stream[stream:], self.dead[dead:], self.published[published:]

    def empty(self) -> None:
        self.checkpoint, self.score = "", 0
        for keys in (self.seen, self.stream, self.dead, self.published):
            keys.clear()

    def set_if_missing(self, ts: str) -> None:
        if not self.checkpoint:
            self.checkpoint = ts

    def commit(self, arguments: list[Any]) -> str:
        """Do what commit.lua does. The arguments are its ARGV."""
        text = [one.decode() if isinstance(one, bytes) else str(one) for one in arguments]
        kind, since, until, keep, window = text[0], text[1], text[2], int(text[3]), int(text[4])
        stored = self.checkpoint
        self.score = next(reversed(self.seen.values()), 0)
        if kind == "restore":
            if stored:
                return stored
        elif not stored:
            return ""
        elif kind == "gap":
            if stored != since:
                return stored
        elif kind != "late" and self.is_missing(since, stored):
            return stored
        at = 8 + 3 * int(text[7])
        events = [(text[i], text[i + 1], text[i + 2]) for i in range(8, at, 3)]
        letters = []
        count, at = int(text[at]), at + 1
        for _ in range(count):
            last = at + 2 + int(text[at + 1])
            letters.append((text[at], Letters(tuple(text[at + 2 : last]))))
            at = last
        told = kind in ("gap", "restore")
        forgotten = not told and self.is_forgotten(float(stored) - float(until), window)  # Lua's numbers
        ids = [event[0] for event in events] + [id for id, _ in letters]
        if forgotten and (kind == "repeat" or not ids):
            self.on_left_out(ids)
            return stored
        if events and not events[0][2] and not forgotten and events[0][0] not in self.seen:
            raise ResponseError("LOST the part before")
        moves = told or self.moves(kind, keep, until, stored)
        if why := self.refused():
            raise Refused(why)
        trims = keep > 0 and self.score // TRIM_EVERY != (self.score + len(ids)) // TRIM_EVERY
        if forgotten:
            reason = f"{len(events)} events and {count} dead letters came so late that they may be on the bus already"
            self.add_letter(
                f"late:{since}:{until}:{len(events)}", Letters(("since", since, "until", until, "error", reason))
            )
            self.on_left_out(ids)
            return stored
        self.write(events, letters, fresh=kind == "batch" and since == stored)
        if moves:
            self.checkpoint = until
            self.on_move(stored, until)
        if trims:
            for id in list(self.seen)[: max(0, len(self.seen) - keep)]:
                del self.seen[id]
        return self.checkpoint

    def is_missing(self, since: str, stored: str) -> bool:
        """Tell whether something between the checkpoint and the batch is missing."""
        return int(since) > int(stored)

    def is_forgotten(self, behind: float, window: int) -> bool:
        """Tell whether a batch so far behind the checkpoint may be on the bus without being in `seen`."""
        return behind >= window / 2 and len(self.seen) >= window

    def moves(self, kind: str, keep: int, until: str, stored: str) -> bool:
        """Tell whether the checkpoint moves to the end of the batch."""
        return kind != "late" and keep > 0 and int(until) > int(stored)

    def write(self, events: list[tuple[str, str, str]], letters: list[tuple[str, Letters]], fresh: bool) -> None:
        """Write what is not in `seen`; publish last."""
        new = [event for event in events if self.is_new(event[0])]
        self.stream += [(id, text) for id, _, text in new]
        for id, letter in letters:
            self.add_letter(id, letter, fresh)
        self.published += [(channel, text) for _, channel, text in new]

    def is_new(self, id: str) -> bool:
        self.score += 1
        return self.seen.setdefault(id, self.score) == self.score

    def add_letter(self, id: str, letter: Letters, fresh: bool = False) -> None:
        known = bool(id) and not self.is_new(id)
        if not known or (fresh and id.startswith("sha256:")):
            self.dead.append(letter)
