"""The state of exactly-once, without any I/O: what is pending, what was committed lately, and what to do next.

Theory of operation
-------------------
VK numbers its updates: every batch that it answers is a range (since, until] of `ts`. The bus remembers two things. The
*checkpoint* is the ts up to which everything is on the bus, or recorded as a gap. *seen* holds the latest event_ids.
Four invariants follow from one decision: `seen` decides what is published, the checkpoint only says where to ask VK.

1. An update leaves memory only when the bus has answered that it has it. Nothing that another fetcher, a failover or VK
   does to the checkpoint makes this fetcher drop what it holds: it offers it, and the bus passes over what it has.
2. The checkpoint never passes an update that is neither on the bus nor inside a recorded gap.
3. The stream holds each event once; with one fetcher, in VK's order. With several fetchers, what only one of them had
   after another had recorded a gap comes late rather than never.
4. After every broken connection, what was committed lately is committed again. Redis may have failed over to a replica
   that lacks acknowledged writes; the bus passes over what it has and takes what it has lost.

A commit is one script, all or nothing (commit.lua). It answers the checkpoint as it is afterwards:

    commit    | condition                           | what the script does
    any       | there is no checkpoint              | nothing; answers ""
    batch     | begins after the checkpoint         | nothing: something in between is missing
    batch     | begins at the checkpoint or before  | publishes what is not in seen; the checkpoint becomes the later ts
    batch     | ends so far before the checkpoint   | publishes nothing, for it might be a repetition; a dead letter
              | that seen may have forgotten it     | tells what was left out
    repeat    | as a batch; committed before        | as a batch, but what is too old needs no dead letter
    late      | VK itself is not that far any more  | publishes what is not in seen; the checkpoint stays
    gap       | the checkpoint stands at `since`    | a dead letter; the checkpoint moves to `until`, also backwards
    gap       | it stands elsewhere                 | nothing
    restore   | there is no checkpoint              | a dead letter; the fetcher's own checkpoint is stored

When the bus answers that something is missing before what is pending, the hole is filled in this order: from what was
committed lately (a failover took it away); from VK, polled at the checkpoint (`hole`); with a gap that ends where what
is pending begins, never further. If VK itself is not that far, it has begun anew, and what is pending is late. So it
is, without asking VK, if what is pending after it has lower ts: then this fetcher has seen VK begin anew.

Redis may also come back as it was before VK began anew. Then the checkpoint is after all that is pending, as it is
where another fetcher is ahead, and `seen` is no judge of the age of a lower ts. So VK is asked for its latest ts
(`in_doubt`), and where even the checkpoint is after that, the gap back is recorded once more.

Commits are pieces of a bounded number of events and bytes. A time-out halves the piece, down to a single event, and a
quick answer doubles it. A batch larger than a piece goes out in parts that do not move the checkpoint, and the last one
does, with all dead letters of it; if the fetcher dies in between, `seen` passes over the parts when VK answers the
batch again. Each further part begins with the last entry of the part before, without its text: the bus must have it, or
else it refuses the part, for a failover has taken the others away, and they go out again.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from .batch import Batch, Commit, DeadLetter, Entry, Gap

MAX_PENDING = 10_000  # updates in memory: no poll beyond…
MAX_PENDING_BYTES = 256 * 2**20  # …and none beyond so many bytes
MAX_RECENT = 1_000  # updates that are remembered after their commit at least, in case a failover loses them…
MAX_RECENT_BYTES = 16 * 2**20  # …or bytes of them, if these are fewer
DEDUP_WINDOW = 3 * MAX_PENDING  # event_ids that the bus remembers
MAX_UNBUILT = 500  # updates that are built at once, so that one request asks for all their names
MERGE_TIME = 1.0  # seconds: batches that come within it are one
MAX_PIECE, MAX_PIECE_BYTES = 500, 2**20  # events and bytes of one commit
FIRST_PIECE_BYTES = 2**17  # a link that needs more than a second for this is a slow one
LOST_CHECKPOINT = "Redis had lost the checkpoint"
WENT_BACK = "VK's ts went back"


@dataclass(eq=False)
class Pending:
    """What is not on the bus yet: a batch, before or after its events are built, or a dead letter about VK's history.

    `held_since` is when it came, in seconds of the caller's clock; `committed` counts the entries that went out.
    """

    kind: Literal["batch", "repeat", "late", "gap", "restore"]
    since: str
    until: str
    updates: list[object] = field(default_factory=list)
    entries: list[Entry | DeadLetter] | None = None
    size: int = 0
    held_since: float = 0.0
    committed: int = 0

    def built(self, entries: list[Entry | DeadLetter]) -> None:
        """Take what goes out for these updates; they themselves are needed no longer.

        Dead letters go last: the part of a batch that moves the checkpoint has them all.
        """
        self.entries, self.updates = sorted(entries, key=lambda entry: isinstance(entry, DeadLetter)), []
        self.size = sum(map(size_of, entries))

    @property
    def count(self) -> int:
        """How many updates these are."""
        return len(self.updates if self.entries is None else self.entries)


class Backlog:
    """What one fetcher holds. It does no arithmetic on ts but comparing: VK's steps are VK's."""

    def __init__(self) -> None:
        """Hold nothing."""
        self.start_ts = ""  # VK's latest ts when this fetcher began
        self.checkpoint: str | None = None  # what the bus said last; None: it was never asked
        self.hole: str | None = None  # the ts at which VK has to be asked for what is missing before what is pending
        self.reached = ""  # up to where this fetcher itself has committed
        self.unsure = False  # whether the checkpoint may be of the time before VK began anew
        self.pending: deque[Pending] = deque()
        self.recent: deque[Pending] = deque()
        self.recent_count = self.recent_bytes = 0
        self.piece, self.piece_bytes = MAX_PIECE, FIRST_PIECE_BYTES

    # What VK answers

    @property
    def next_ts(self) -> str:
        """The ts to poll at: where what is pending ends, else the checkpoint."""
        last, checkpoint = self.pending[-1] if self.pending else None, self.checkpoint or self.start_ts
        if not last or last.kind == "late":
            return checkpoint
        past = is_after(checkpoint, last.until) and all(one.kind in ("repeat", "late") for one in self.pending)
        return checkpoint if past and not self.in_doubt else last.until

    @property
    def count(self) -> int:
        """How many updates are pending."""
        return sum(one.count for one in self.pending)

    @property
    def is_full(self) -> bool:
        """Whether memory is used up, so that VK must not be polled."""
        return self.count >= MAX_PENDING or sum(one.size for one in self.pending) >= MAX_PENDING_BYTES

    def add(self, answer: Batch | Gap, now: float) -> None:
        """Hold what VK answered at `next_ts`."""
        if isinstance(answer, Gap):
            if answer.until != answer.since:
                self.pending.append(gap(answer.since, answer.until, answer.error))
            return
        if is_after(answer.since, answer.until):  # VK has begun anew, and does not say so
            self.add(answer._replace(until=answer.since), now)
            self.add(Gap(answer.since, answer.until, WENT_BACK), now)
            return
        last = self.pending[-1] if self.pending else None
        young = last and last.kind == "batch" and last.entries is None and now - last.held_since < MERGE_TIME
        if last and young and last.count + len(answer.updates) <= MAX_UNBUILT:
            last.updates, last.until, last.size = last.updates + answer.updates, answer.until, last.size + answer.size
        elif answer.updates or answer.until != answer.since:
            self.pending.append(batch(answer, now))

    # What goes to the bus

    def unbuilt(self) -> list[Pending]:
        """Return the first pending batches whose events are not built yet, as many as are built at once."""
        batches: list[Pending] = []
        for one in self.pending:
            if one.entries is None:
                if batches and sum(other.count for other in batches) + one.count > MAX_UNBUILT:
                    break
                batches.append(one)
        return batches

    def next_commit(self) -> Commit | None:
        """Return what goes to the bus next, or None if that is nothing, or not built yet.

        That is as many complete batches as fit, one following the other without a hole, or a part of the first.
        """
        if not self.pending or self.pending[0].entries is None:
            return None
        first = last = self.pending[0]
        entries, size = self._part(first)
        before, keep = self._before(first), DEDUP_WINDOW + first.count
        if len(entries) < first.count - first.committed:
            return Commit(first.kind, first.since, first.until, before + entries, 0, 0, size)
        completes = 1
        if first.kind in ("batch", "repeat"):
            for one in islice(self.pending, 1, None):
                fits = len(entries) + one.count <= self.piece and size + one.size <= self.piece_bytes
                if one.entries is None or one.kind != first.kind or one.since != last.until or not fits:
                    break
                entries, size, keep = entries + one.entries, size + one.size, max(keep, DEDUP_WINDOW + one.count)
                completes, last = completes + 1, one
        return Commit(first.kind, first.since, last.until, before + entries, completes, keep, size)

    def _before(self, first: Pending) -> list[Entry | DeadLetter]:
        """Return the last entry of the part before, without its text."""
        if not first.committed or first.entries is None:
            return []
        entry = first.entries[first.committed - 1]
        return [Entry(entry.id, entry.event_type if isinstance(entry, Entry) else "", b"")]

    def _part(self, first: Pending) -> tuple[list[Entry | DeadLetter], int]:
        """Return as many of its entries as fit, one at least and no dead letter without all of them, and their size."""
        entries: list[Entry | DeadLetter] = []
        size = 0
        for entry in islice(first.entries or (), first.committed, None):
            size += size_of(entry)
            full = len(entries) >= self.piece or size > self.piece_bytes
            if entries and full and isinstance(entry, Entry):
                return entries, size - size_of(entry)
            entries.append(entry)
        return entries, size

    def answered(self, commit: Commit, checkpoint: str) -> None:
        """Take the bus's answer to `next_commit`: the checkpoint as it is now, "" if there is none."""
        first = self.pending[0]
        if not checkpoint:
            self.connected("")  # the bus may have lost more than that
            return
        self.checkpoint = checkpoint
        if commit.kind == "gap":
            self._gap_answered(first, checkpoint)
        elif commit.kind in ("batch", "repeat") and is_after(commit.since, checkpoint):
            self._find_hole(first, checkpoint)
        elif commit.completes:
            for _ in range(commit.completes):
                self._remember(self.pending.popleft())
            if commit.kind == "batch":
                self.reached = commit.until
        else:
            first.committed += len(commit.entries) - bool(first.committed)  # without that of the part before

    def _gap_answered(self, first: Pending, checkpoint: str) -> None:
        backwards = is_after(first.since, first.until)
        if is_after(first.since, checkpoint) if backwards else not is_after(first.until, checkpoint):
            self.pending.popleft()  # recorded, by this fetcher or another
            self.reached = first.until
            if backwards:  # committed again, what is of the time before must not move the checkpoint back there
                self.unsure = self.unsure or checkpoint != first.until
                for one in self.recent:
                    one.kind = "late"
        elif is_after(first.since, checkpoint):
            self._find_hole(first, checkpoint)
        elif backwards:  # another fetcher was further than where VK began anew
            self.pending[0] = gap(checkpoint, first.until, error_of(first))
        else:  # another fetcher has had a part of it: VK is asked for the rest once more
            self.pending.popleft()

    def _remember(self, done: Pending) -> None:
        if done.kind not in ("batch", "repeat", "late"):
            return
        done.kind, done.committed = "late" if done.kind == "late" else "repeat", 0
        self.recent.append(done)
        self.recent_count, self.recent_bytes = self.recent_count + done.count, self.recent_bytes + done.size
        while oldest := self._superfluous():
            self.recent.popleft()
            self.recent_count, self.recent_bytes = self.recent_count - oldest.count, self.recent_bytes - oldest.size

    def _superfluous(self) -> Pending | None:
        """Return the oldest batch that is remembered, if there is enough without it: the latest may be a large one."""
        oldest = self.recent[0]
        too_many = self.recent_count - oldest.count >= MAX_RECENT or len(self.recent) > MAX_RECENT
        return oldest if too_many or self.recent_bytes - oldest.size >= MAX_RECENT_BYTES else None

    def _recall(self, batches: list[Pending]) -> None:
        """Commit once more, and first, what was committed before."""
        kept = [one for one in self.recent if one not in batches]
        self.recent, self.recent_count = deque(kept), sum(one.count for one in kept)
        self.recent_bytes = sum(one.size for one in kept)
        self.pending.extendleft(reversed(batches))

    # What is missing

    def _find_hole(self, first: Pending, checkpoint: str) -> None:
        """Something between the checkpoint and what is pending is missing: it was committed lately, or VK has it."""
        repeats = [one for one in self.recent if one.kind == "repeat"]
        lost = [one for one in repeats if is_after(one.until, checkpoint) and not is_after(one.until, first.until)]
        if lost:
            self._recall(lost)
        elif self._is_outlived(first):
            self._outlive(first)
        else:
            self.hole = checkpoint

    def _is_outlived(self, first: Pending) -> bool:
        """Tell whether VK has begun anew since: what is pending after it has lower ts."""
        return any(is_after(first.since, one.until) for one in self.pending)

    def _outlive(self, first: Pending) -> None:
        """Expect nothing before this: VK has begun anew since."""
        if first.kind == "gap":
            self.pending.popleft()
        else:
            first.kind = "late"

    def fill(self, answer: Batch | Gap, now: float) -> None:
        """Put what VK answered at `hole` before what is pending.

        An empty answer, and a gap that leads nowhere or back, mean that VK is not that far: it has begun anew.
        """
        hole, self.hole, first = self.hole or "", None, self.pending[0]
        if isinstance(answer, Gap) and is_after(answer.until, hole) and not self._is_outlived(first):
            inside = is_after(first.since, answer.until)
            until = answer.until if inside else first.since  # it must not hide what is pending
            self.pending.appendleft(gap(hole, until, answer.error))
        elif isinstance(answer, Batch) and (answer.updates or is_after(answer.until, hole)):
            until = answer.until if is_after(answer.until, hole) else hole
            self.pending.appendleft(batch(answer._replace(until=until), now))
        else:
            self._outlive(first)

    @property
    def in_doubt(self) -> bool:
        """Whether VK has to be asked how far it is: the checkpoint is after all that is pending."""
        ends = [one.until for one in self.pending if one.kind in ("batch", "repeat")] if self.unsure else []
        return bool(ends) and is_after(self.checkpoint or "0", ends[-1])

    def vk_is_at(self, latest: str) -> None:
        """Take VK's latest ts: where it is before the checkpoint, Redis is as it was before VK began anew."""
        self.unsure, checkpoint = False, self.checkpoint or "0"
        forward = [one for one in self.pending if not is_after(one.since, one.until)]
        young = [one for one in forward if one.kind != "late" and not is_after(one.until, latest)]
        if young and is_after(checkpoint, latest):
            back = gap(checkpoint, young[0].since, WENT_BACK)
            self.pending = deque([*(one for one in forward if one not in young), back, *young])

    # The connection

    def connected(self, checkpoint: str) -> None:
        """Begin again on a new connection, at which the bus returned this checkpoint ("" for none)."""
        self.hole = None
        self.unsure = self.unsure or bool(checkpoint and is_after(checkpoint, self.reached or self.start_ts))
        for one in self.pending:
            one.committed = 0
        self._recall(list(self.recent))
        if checkpoint:
            self.checkpoint = checkpoint
        elif not self.pending or self.pending[0].kind != "restore":
            self.pending.appendleft(restore(self.checkpoint or self.start_ts))

    # How much goes out at once

    def shrink_piece(self) -> None:
        """Commit smaller pieces: the last one took too long."""
        self.piece, self.piece_bytes = max(1, self.piece // 2), max(1, self.piece_bytes // 2)

    def grow_piece(self, commit: Commit) -> None:
        """Commit larger pieces, if this one was about as large as allowed."""
        if 2 * len(commit.entries) > self.piece or 2 * commit.size > self.piece_bytes:
            self.piece, self.piece_bytes = min(MAX_PIECE, 2 * self.piece), min(MAX_PIECE_BYTES, 2 * self.piece_bytes)


def is_after(ts: str, other: str) -> bool:
    """Tell whether a ts is later than the other; VK's ts are numbers, however long."""
    return int(ts) > int(other)


def size_of(entry: Entry | DeadLetter) -> int:
    """Return about how many bytes it takes on the wire."""
    if isinstance(entry, Entry):
        return len(entry.text) + 100
    return sum(map(len, entry.fields.values())) + 100


def batch(answer: Batch, now: float) -> Pending:
    """Return VK's answer as something pending."""
    return Pending("batch", answer.since, answer.until, answer.updates, size=answer.size, held_since=now)


def gap(since: str, until: str, error: str) -> Pending:
    """Return a gap as something pending."""
    return Pending("gap", since, until, entries=[DeadLetter("", {"since": since, "until": until, "error": error})])


def restore(ts: str) -> Pending:
    """Return what stores the fetcher's own checkpoint where the bus has none."""
    return Pending("restore", ts, ts, entries=gap(ts, ts, LOST_CHECKPOINT).entries)


def error_of(pending: Pending) -> str:
    """Return why the gap is there."""
    return next((one.fields["error"] for one in pending.entries or () if isinstance(one, DeadLetter)), "")
