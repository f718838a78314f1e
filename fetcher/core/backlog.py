"""The state of exactly-once, without I/O: what is pending, what was committed lately, and what to do next.

Theory of operation
-------------------
One order: every place in VK's history is a Position (epoch, ts, part), compared as a tuple. When VK restarts its
numbering, the next epoch begins, so every gap leads forward. A batch is an answer of VK, or a piece of one, as a range
(since, until]. The bus remembers the *checkpoint*, up to which everything is on the bus or inside a recorded gap, and
*seen*, the latest event_ids. `seen` decides what is published; the checkpoint only says where to poll VK.

1. An update leaves memory only when the bus has answered that it has it, or has recorded that it came too late.
2. The checkpoint never passes an update that is neither on the bus nor inside a recorded gap.
3. The stream holds each event once; with one fetcher, in VK's order. With several, an update that only one of them had,
   after another had recorded a gap, comes late rather than never.
4. What was committed lately stays in the replay buffer. After every broken connection its ids are looked up, and only
   those that are not in `seen` go out again: Redis may have failed over to a replica without the latest writes.

A commit is one atomic script (commit.lua). It returns the checkpoint afterwards:

    commit  | condition                            | what the script does
    batch,  | there is no checkpoint               | nothing; the fetcher then restores its own, and commits what it
    gap     |                                      | committed lately once more
    restore | there is no checkpoint               | a record; the checkpoint becomes `until`
    restore | there is one                         | nothing
    batch   | begins after the checkpoint          | nothing: something in between is missing
    batch   | begins at the checkpoint or before   | publishes what is not in seen; the checkpoint becomes the later one
    batch   | begins half a window of seen before, | leaves out what is not in seen, which may have forgotten it; a
            | does not reach it, and seen is full  | record says how many updates these were
    gap     | the checkpoint is at `since`         | a record; the checkpoint becomes `until`
    gap     | it is elsewhere                      | nothing

If the checkpoint is before what is pending, the part between comes from the replay buffer; else from VK, polled at the
checkpoint; else it is a gap. What is missing of an earlier epoch is a gap at once: VK no longer has it.

Example: Redis comes back without its latest 40 events. The connection broke, so the fetcher looks up the ids of its
replay buffer, finds that 40 are not in `seen`, and commits their batches again before anything new. If the fetcher was
restarted meanwhile, it has no replay buffer: it polls VK at the older checkpoint, and VK returns the 40 once more, or
they are a gap.

A fetcher that starts while Redis is down polls from VK's latest ts and counts epochs from 0 (see `rebase`).
"""

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import Literal, Self

from .history import Answer, DeadLetter, Entry, Position
from .pieces import PieceSize, size_of

MAX_PENDING = 10_000  # updates in memory: no poll beyond these…
MAX_PENDING_BYTES = 256 * 2**20  # …or these
MAX_REPLAY, MAX_REPLAY_BYTES = 1_000, 16 * 2**20  # updates or bytes in the replay buffer, whichever is less
DEDUP_WINDOW = 3 * MAX_PENDING  # event_ids that the bus remembers
MAX_UNBUILT = 1_000  # updates that are built at once, so that one request resolves all their names
LOST_CHECKPOINT = "Redis had lost the checkpoint"
RESTARTED = "VK restarted its numbering"
NOT_ANSWERED = "VK does not return what is between"


@dataclass(eq=False)
class Pending:
    """What is not on the bus yet: a batch, a gap, or the checkpoint that the bus has lost.

    `entries` are what goes out for the updates, one for each, None for a type that is not published. Once they are
    built, there are no `updates` any more. `size` is in bytes, `held_since` in seconds of the caller's clock.
    """

    kind: Literal["batch", "gap", "restore"]
    since: Position
    until: Position
    updates: list[object] = field(default_factory=list)
    entries: list[Entry | DeadLetter | None] = field(default_factory=list)
    size: int = 0
    held_since: float = 0.0
    end: Position | None = None  # of VK's answer, if this is a piece of one
    items: int = 1  # how many pending items are joined in this one

    @classmethod
    def record(cls, kind: Literal["gap", "restore"], since: Position, until: Position, error: str) -> Self:
        """Return a gap, or a lost checkpoint; the bus records it as a dead letter."""
        fields = {"since": str(since), "until": str(until), "error": error}
        return cls(kind, since, until, entries=[DeadLetter("", fields)])

    def built(self, entries: list[Entry | DeadLetter | None]) -> None:
        """Replace the updates with what goes out for them."""
        self.entries, self.updates, self.size = entries, [], sum(map(size_of, entries))

    def split(self, count: int) -> Self:
        """Keep the first `count` updates and return the rest; both are built."""
        middle, end = self.since._replace(part=self.since.part + count), self.end or self.until
        rest = replace(self, since=middle, end=end)
        rest.built(self.entries[count:])
        self.built(self.entries[:count])
        self.until, self.end = middle, end
        return rest

    def joined(self, other: Self) -> Self:
        """Return this batch and the one that begins where it ends as one; both are built."""
        entries, size = self.entries + other.entries, self.size + other.size
        return replace(self, until=other.until, entries=entries, size=size, end=other.end, items=self.items + 1)

    @property
    def count(self) -> int:
        """How many updates these are."""
        return len(self.updates or self.entries) if self.kind == "batch" else 0


class Backlog:
    """What one fetcher holds. It only compares ts, and never calculates with them: VK may take steps of any size."""

    checkpoint: Position  # what the bus said last; until then where this fetcher began

    def __init__(self) -> None:
        """Hold nothing."""
        self.checkpoint_from: Literal["nowhere", "VK", "the bus"] = "nowhere"
        self.pending: deque[Pending] = deque()
        self.replay: deque[Pending] = deque()
        self.replay_count = self.replay_size = 0  # updates and bytes
        self.piece = PieceSize()

    # What VK answers

    def start(self, latest_ts: int) -> None:
        """Begin at VK's latest ts, until the bus says what its checkpoint is."""
        self.checkpoint, self.checkpoint_from = Position(0, latest_ts), "VK"

    @property
    def next(self) -> Position:
        """Where to poll: at the end of what is pending, or at the checkpoint, whichever is later."""
        return max(self.pending[-1].until, self.checkpoint) if self.pending else self.checkpoint

    @property
    def count(self) -> int:
        """How many updates are pending."""
        return sum(one.count for one in self.pending)

    @property
    def is_full(self) -> bool:
        """Whether memory is used up, so that VK must not be polled."""
        return self.count >= MAX_PENDING or sum(one.size for one in self.pending) >= MAX_PENDING_BYTES

    def add(self, answer: Answer, now: float) -> None:
        """Hold what VK answered at `next`."""
        self.pending.extend(located(self.next, answer, now))

    # What goes to the bus

    def unbuilt(self) -> list[Pending]:
        """Return the first pending batches whose events are not built yet, as many as are built at once."""
        batches = [one for one in self.pending if one.updates]
        counts = accumulate(one.count for one in batches)
        return [one for one, count in zip(batches, counts, strict=True) if count <= MAX_UNBUILT] or batches[:1]

    def next_commit(self) -> Pending | None:
        """Return what goes to the bus next, or None if nothing is pending, or not built yet.

        These are as many whole batches as fit into a piece, each beginning where the one before ends; the first is
        split if it does not fit.
        """
        commit = self.pending[0] if self.pending else None
        if not commit or commit.updates:
            return None
        if commit.count > 1 and not self.piece.has_room(commit.count, commit.size):
            self.pending.insert(1, commit.split(self.piece.how_many(commit.entries)))
        for one in islice(self.pending, 1, None):
            follows = one.kind == commit.kind == "batch" and one.since == commit.until and not one.updates
            if not follows or not self.piece.has_room(commit.count + one.count, commit.size + one.size):
                break
            commit = commit.joined(one)
        return commit

    def answered(self, commit: Pending, checkpoint: Position, left_out: int = 0) -> None:
        """Take the bus's answer to `next_commit`."""
        self.checkpoint = checkpoint
        if commit.kind != "restore" and commit.since > checkpoint:
            return  # something before it is missing: the bus has done nothing
        done = [self.pending.popleft() for _ in range(commit.items)]
        # Not if another fetcher has filled a part of the gap, or if it came too late: it would be recorded again.
        if commit.kind != "restore" and checkpoint >= commit.until and not left_out:
            self._remember(done)

    def _remember(self, done: list[Pending]) -> None:
        """Add to the replay buffer, and drop the oldest items that it does not need: the latest may be large."""
        for one in done:
            self.replay.append(one)
            self.replay_count, self.replay_size = self.replay_count + one.count, self.replay_size + one.size
            while (
                len(self.replay) > MAX_REPLAY
                or self.replay_count - self.replay[0].count >= MAX_REPLAY
                or self.replay_size - self.replay[0].size >= MAX_REPLAY_BYTES
            ):
                oldest = self.replay.popleft()
                self.replay_count, self.replay_size = self.replay_count - oldest.count, self.replay_size - oldest.size

    # What is missing

    @property
    def is_missing_updates(self) -> bool:
        """Whether a part of VK's history is missing between the checkpoint and what is pending."""
        return self.pending[0].kind != "restore" and self.pending[0].since > self.checkpoint

    def recall(self) -> bool:
        """Put before what is pending what is missing there and VK need not be polled for; return whether there is any.

        The replay buffer has it, or it is a gap, because it is of an earlier epoch.
        """
        checkpoint, start = self.checkpoint, self.pending[0].since
        missing = [one for one in self.replay if checkpoint < one.until <= start]
        if not missing and checkpoint.epoch < start.epoch:
            missing = [Pending.record("gap", checkpoint, start, RESTARTED)]
        self._commit_again(missing)
        return bool(missing)

    def fill(self, answer: Answer, now: float) -> None:
        """Put what VK answered at the checkpoint before what is pending."""
        checkpoint, start = self.checkpoint, self.pending[0].since
        found = located(checkpoint, answer, now)
        is_behind = not found or found[-1].until.epoch > checkpoint.epoch  # or VK has restarted its numbering
        if is_behind or (found[0].kind == "gap" and found[0].until >= start):  # a gap must not hide what is pending
            found = [Pending.record("gap", checkpoint, start, NOT_ANSWERED)]
        self.pending.extendleft(reversed(found))

    def _commit_again(self, batches: list[Pending]) -> None:
        self.replay = deque(one for one in self.replay if one not in batches)
        self.replay_count = sum(one.count for one in self.replay)
        self.replay_size = sum(one.size for one in self.replay)
        # The replay buffer is in the order of commits: what has been committed again is at its end.
        in_order = sorted(batches, key=lambda one: one.since)
        self.pending.extendleft(reversed(in_order))

    # The connection

    def replay_ids(self) -> list[str]:
        """Return the ids of the replay buffer."""
        return [entry.id for one in self.replay for entry in one.entries if entry and entry.id]

    def rebase(self, checkpoint: Position, latest_ts: int) -> None:
        """Count epochs as the bus does, when its checkpoint is read for the first time while updates are pending.

        VK has restarted its numbering since the checkpoint if its latest ts is lower than that of the checkpoint, and
        since the last pending update if it is lower than that one's.
        """
        last = self.pending[-1].until
        epochs = max(0, checkpoint.epoch + (latest_ts < checkpoint.ts) - (latest_ts < last.ts) - last.epoch)
        for one in self.pending:
            one.since, one.until = (place._replace(epoch=place.epoch + epochs) for place in (one.since, one.until))

    def connected(self, checkpoint: Position | None, missing: set[str]) -> None:
        """Begin again on a new connection: the bus has this checkpoint (None: it has none), and lacks these ids."""
        self._commit_again([one for one in self.replay if is_lacking(one, checkpoint, missing)])
        self.checkpoint, self.checkpoint_from = checkpoint or self.checkpoint, "the bus"
        if checkpoint is None and not (self.pending and self.pending[0].kind == "restore"):
            self.pending.appendleft(Pending.record("restore", self.checkpoint, self.checkpoint, LOST_CHECKPOINT))


def located(polled: Position, answer: Answer, now: float) -> list[Pending]:
    """Return VK's answer as pending items, in the order of VK's history: at most a gap, a batch and another gap."""
    found: list[Pending] = []
    since = max(polled, polled.followed_by(answer.since))
    if since > polled:
        found.append(Pending.record("gap", polled, since, answer.gap))
    # VK knows no parts: what it answers begins at the ts, and `seen` knows what is on the bus already.
    begin, until = since._replace(part=0), since.followed_by(answer.until)
    restarted = until.epoch > since.epoch
    if answer.updates or until > since:
        end = begin if restarted else until
        found.append(Pending("batch", begin, end, answer.updates, size=answer.size, held_since=now))
    if restarted:
        found.append(Pending.record("gap", since, until, RESTARTED))
    return found


def is_lacking(one: Pending, checkpoint: Position | None, missing: set[str]) -> bool:
    """Return whether the bus lacks some of what was committed before."""
    if one.kind == "gap":
        return checkpoint is None or checkpoint < one.until
    return any(entry and entry.id in missing for entry in one.entries)
