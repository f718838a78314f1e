"""The state of exactly-once, without I/O: what is pending, what was committed lately, and what to commit next.

Theory of operation
-------------------
Positions. Every place in VK's history is a Position (epoch, ts, part), and positions are compared as tuples. When VK
restarts its numbering, the next epoch begins, so a later update always has a later position, and every gap leads
forward. A batch is one answer of VK, and covers the range (since, until]. One that is too large for a commit is cut
into pieces, each of which is a batch, too: (100, 103] with 800 updates becomes (100, 100+500] and (100+500, 103].

What the bus remembers. The *checkpoint* is the position up to which every update is on the bus or inside a recorded
gap. *Seen* holds the latest event_ids. Only `seen` decides whether an event is published; the checkpoint only says
where to poll VK.

What the fetcher holds. `pending` is what the bus has not confirmed yet, in the order in which it will be committed.
`replay`, the replay buffer, is what the bus has confirmed lately, in case Redis loses it.

The rules (docs/guarantees.md describes their limits):

1. An update leaves `pending` only when the bus has answered that it has the update, or has recorded that the update
   came too late.
2. The checkpoint never passes an update that is neither on the bus nor inside a recorded gap.
3. The stream holds each event once. With one fetcher, events are in VK's order. With several, an update that only one
   of them had is published late, rather than never, if another has recorded a gap in its place.
4. After every broken connection, and if the checkpoint is gone or earlier than before, the fetcher looks up the ids of
   the replay buffer, and commits again what ends after the checkpoint or has an id that is not in `seen`, because Redis
   may have failed over to a replica without the latest writes.

A commit is one atomic script (commit.lua), which returns the checkpoint as it is afterwards:

    commit  | condition                          | what the script does
    --------+------------------------------------+------------------------------------------------------------------
    batch,  | there is no checkpoint             | nothing; the fetcher then restores its own checkpoint, and commits
    gap     |                                    | again what the bus has lost of the replay buffer
    restore | there is no checkpoint             | records the loss; the checkpoint becomes `until`
    restore | there is one                       | nothing: another fetcher has restored it
    batch   | begins after the checkpoint        | nothing: something in between is missing
    batch   | begins at or before the checkpoint | publishes what is not in `seen`; the checkpoint becomes `until`,
            |                                    | if that is later
    batch   | as above, but late: see below      | publishes nothing, because what is not in `seen` may only have
            |                                    | been forgotten; records how many such updates were left out
    gap     | the checkpoint is at `since`       | records the gap; the checkpoint becomes `until`
    gap     | the checkpoint is elsewhere        | nothing

A batch is late if it ends at or before the checkpoint and begins, in the same epoch, at a ts that is lower than the
checkpoint's by at least half of DEDUP_WINDOW, while `seen` is full.

Example: the checkpoint is 100. VK, polled there, returns three updates and ts 103. They become the batch (100, 103].
The script finds that the batch begins at the checkpoint, publishes the three events, and sets the checkpoint to 103. A
second fetcher of the same community commits the same batch a moment later. It begins before the checkpoint and all its
ids are in `seen`, so nothing is published and the checkpoint stays.

What is missing. If the first pending item begins after the checkpoint even so, the part in between is missing. The
fetcher polls VK at the checkpoint, and puts VK's answer before that item. If VK does not return what is missing, or if
the checkpoint is of an earlier epoch, which VK no longer has, a gap takes its place.

Example: Redis comes back without its latest 40 events. The connection broke, so the fetcher looks up the ids of its
replay buffer, finds that 40 are not in `seen`, and commits their batches again before anything new. If the fetcher was
restarted in the meantime, its replay buffer is empty. It then polls VK at the older checkpoint, and either VK returns
the 40 updates once more, or a gap is recorded.

Start without Redis. A fetcher that starts while Redis is down polls from VK's latest ts and counts epochs from 0, until
it can read the checkpoint (see `rebase`).
"""

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal, Self

from .history import Answer, DeadLetter, Entry, Outcome, Position
from .pieces import PieceSize, size_of

MAX_PENDING = 10_000  # pending updates: VK is not polled while there are this many…
MAX_PENDING_BYTES = 256 * 2**20  # …or while they take this many bytes
MAX_REPLAY, MAX_REPLAY_BYTES = 1_000, 16 * 2**20  # updates in the replay buffer; fewer if they are large
DEDUP_WINDOW = 3 * MAX_PENDING  # event_ids in `seen`
MAX_UNBUILT = 1_000  # updates built together, so that one request resolves all their names
LOST_CHECKPOINT = "Redis had lost the checkpoint"
RESTARTED = "VK restarted its numbering"
NOT_ANSWERED = "VK does not return the updates in between"


@dataclass(eq=False)
class Pending:
    """An item to commit: a batch, a gap, or the checkpoint that the bus has lost ("restore").

    A batch first holds VK's `updates`. Building replaces them with `entries`: one for each update, None if its type is
    not published. `size` is in bytes.
    """

    kind: Literal["batch", "gap", "restore"]
    since: Position
    until: Position
    updates: list[object] = field(default_factory=list)
    entries: list[Entry | DeadLetter | None] = field(default_factory=list)
    size: int = 0
    end: Position | None = None  # where VK's whole answer ends, if this is a piece of it

    @classmethod
    def record(cls, kind: Literal["gap", "restore"], since: Position, until: Position, error: str) -> Self:
        """Return a gap or a lost checkpoint, with the dead letter that records it."""
        fields = {"since": str(since), "until": str(until), "error": error}
        return cls(kind, since, until, entries=[DeadLetter("", fields)])

    def set_entries(self, entries: list[Entry | DeadLetter | None]) -> None:
        """Replace the updates with the entries built from them."""
        self.entries, self.updates, self.size = entries, [], sum(map(size_of, entries))

    def split(self, count: int) -> Self:
        """Keep the first `count` entries and return a batch of the rest; this batch must be built."""
        middle, end = self.since._replace(part=self.since.part + count), self.end or self.until
        rest = replace(self, since=middle, end=end)
        rest.set_entries(self.entries[count:])
        self.set_entries(self.entries[:count])
        self.until, self.end = middle, end
        return rest

    def join(self, other: Self) -> None:
        """Add the batch that begins where this one ends; both must be built."""
        self.until, self.end, self.size = other.until, other.end, self.size + other.size
        self.entries += other.entries

    @property
    def count(self) -> int:
        """How many updates this item holds; 0 unless it is a batch."""
        return len(self.updates or self.entries) if self.kind == "batch" else 0

    @property
    def ids(self) -> list[str]:
        """The ids of the entries."""
        return [entry.id for entry in self.entries if entry and entry.id]

    @property
    def weight(self) -> int:
        """How much of the replay buffer this item takes, in updates; an update of over 16 KiB counts as several."""
        return max(1, self.count, self.size * MAX_REPLAY // MAX_REPLAY_BYTES)


class Backlog:
    """Holds one fetcher's state. It only compares ts and never calculates with them: VK may take steps of any size."""

    checkpoint: Position  # the bus's latest answer; before the first one, VK's ts at which this fetcher began

    def __init__(self) -> None:
        """Start with nothing pending."""
        self.checkpoint_from: Literal["", "VK", "the bus"] = ""
        self.pending: deque[Pending] = deque()
        self.replay: deque[Pending] = deque()
        self.replay_weight = 0
        self.piece = PieceSize()

    # What VK answers

    def start(self, latest_ts: int) -> None:
        """Begin at VK's latest ts, until the bus's checkpoint is known."""
        self.checkpoint, self.checkpoint_from = Position(0, latest_ts), "VK"

    @property
    def next(self) -> Position:
        """Where to poll VK: at the end of what is pending or at the checkpoint, whichever is later."""
        return max(self.pending[-1].until, self.checkpoint) if self.pending else self.checkpoint

    @property
    def count(self) -> int:
        """How many updates are pending."""
        return sum(one.count for one in self.pending)

    @property
    def is_full(self) -> bool:
        """Whether so much is pending that VK must not be polled."""
        return self.count >= MAX_PENDING or sum(one.size for one in self.pending) >= MAX_PENDING_BYTES

    def add(self, answer: Answer) -> None:
        """Append VK's answer to the poll at `next`."""
        self.pending.extend(located(self.next, answer))

    # What goes to the bus

    def unbuilt(self) -> list[Pending]:
        """Return the oldest unbuilt batches, at most MAX_UNBUILT updates together, or one batch if that has more."""
        batches = [one for one in self.pending if one.updates]
        counts = accumulate(one.count for one in batches)
        return [one for one, count in zip(batches, counts, strict=True) if count <= MAX_UNBUILT] or batches[:1]

    def next_commit(self) -> Pending | None:
        """Return the first pending item, or None if there is none or it is not built yet.

        First it is joined with as many of the batches after it as fit into a piece, each of which begins where the one
        before it ends. If even the first batch does not fit, it is split. Gaps and restores are committed alone.
        """
        commit = self.pending[0] if self.pending else None
        if not commit or commit.updates:
            return None
        if commit.count > 1 and not self.piece.has_room(commit.count, commit.size):
            self.pending.insert(1, commit.split(self.piece.how_many(commit.entries)))
        while len(self.pending) > 1:
            one = self.pending[1]
            follows = one.kind == commit.kind == "batch" and one.since == commit.until and not one.updates
            if not follows or not self.piece.has_room(commit.count + one.count, commit.size + one.size):
                break
            commit.join(one)
            del self.pending[1]
        return commit

    def answered(self, commit: Pending, outcome: Outcome) -> bool:
        """Take the bus's answer to a commit that `next_commit` returned.

        Return False if the bus has lost something, because its checkpoint is gone or earlier than before: everything
        stays pending until the bus has been read again.
        """
        checkpoint = outcome.checkpoint
        if not checkpoint or checkpoint < self.checkpoint:
            return False
        self.checkpoint = checkpoint
        self.pending.popleft()
        # Do not remember a gap that another fetcher has filled in part, because it would be committed again and again,
        # nor a batch that came too late, because it might be recorded a second time after the next broken connection.
        if commit.kind != "restore" and checkpoint >= commit.until and not outcome.left_out:
            self.replay.append(commit)
            self.replay_weight += commit.weight
            # The oldest item stays unless the others alone fill the buffer; so the latest stays, however large it is.
            while self.replay_weight - self.replay[0].weight >= MAX_REPLAY:
                self.replay_weight -= self.replay.popleft().weight
        return True

    # What is missing

    def connected(self, checkpoint: Position | None, missing: set[str]) -> None:
        """Commit again what the bus lacks of the replay buffer: it has this checkpoint, or none, but not these ids."""
        stored = checkpoint or Position(0, 0)
        lacking = [one for one in self.replay if stored < one.until or not missing.isdisjoint(one.ids)]
        self.replay = deque(one for one in self.replay if one not in lacking)
        self.replay_weight = sum(one.weight for one in self.replay)
        # The replay buffer is in the order of commits, which is not VK's order if something was committed again.
        in_order = sorted(lacking, key=lambda one: one.since)
        self.pending.extendleft(reversed(in_order))
        self.checkpoint, self.checkpoint_from = checkpoint or self.checkpoint, "the bus"
        if not checkpoint and not (self.pending and self.pending[0].kind == "restore"):
            self.pending.appendleft(Pending.record("restore", self.checkpoint, self.checkpoint, LOST_CHECKPOINT))

    @property
    def is_missing_updates(self) -> bool:
        """Whether a part of VK's history is missing between the checkpoint and what is pending."""
        return self.pending[0].kind != "restore" and self.pending[0].since > self.checkpoint

    def fill(self, answer: Answer) -> None:
        """Put VK's answer at the checkpoint before what is pending, or a gap if VK does not have what is missing."""
        found = located(self.checkpoint, answer)
        # VK has nothing after the checkpoint, or has restarted its numbering since.
        is_behind = not found or found[-1].until.epoch > self.checkpoint.epoch
        # A gap must not cover what is pending.
        if is_behind or (found[0].kind == "gap" and found[0].until >= self.pending[0].since):
            self.skip(NOT_ANSWERED)
        else:
            self.pending.extendleft(reversed(found))

    def skip(self, error: str) -> None:
        """Put a gap before what is pending, because nobody has what is missing."""
        self.pending.appendleft(Pending.record("gap", self.checkpoint, self.pending[0].since, error))

    def rebase(self, checkpoint: Position, latest_ts: int) -> None:
        """Number the epochs of what is pending as the bus does, when its checkpoint is read for the first time.

        Until then this fetcher has counted epochs from 0. `latest_ts` is VK's, requested after the checkpoint was read.
        If it is lower than the checkpoint's ts, VK has restarted its numbering since the checkpoint, so VK is in the
        next epoch now. If it is lower than the ts at which the last pending item ends, VK has restarted its numbering
        since that item, too, which is then of the epoch before.
        """
        last = self.pending[-1].until
        epochs = max(0, checkpoint.epoch + (latest_ts < checkpoint.ts) - (latest_ts < last.ts) - last.epoch)
        for one in self.pending:
            one.since, one.until = (place._replace(epoch=place.epoch + epochs) for place in (one.since, one.until))


def located(polled: Position, answer: Answer) -> list[Pending]:
    """Return VK's answer to a poll at `polled` as pending items, in VK's order: at most a gap, a batch and a gap."""
    found: list[Pending] = []
    since = max(polled, polled.followed_by(answer.since))
    if since > polled:
        found.append(Pending.record("gap", polled, since, answer.gap or RESTARTED))
    # VK knows nothing of parts: its answer holds all updates after the ts. `seen` filters out those already on the bus.
    begin, until = since._replace(part=0), since.followed_by(answer.until)
    restarted = until.epoch > since.epoch
    if answer.updates or until > since:
        end = begin if restarted else until
        found.append(Pending("batch", begin, end, answer.updates, size=answer.size))
    if restarted:
        found.append(Pending.record("gap", since, until, RESTARTED))
    return found
