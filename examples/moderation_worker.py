"""Report who posts links in a chat for the third time. Durable: nothing is missed while this does not run.

Several may share the work, each under a name of its own; in the directory of the repository:
python -m examples.moderation_worker moderation-1
An event may come again after a crash: so the links of a person are a set of event_ids, not a counter. An event that
makes this crash three times becomes a dead letter in the stream {events}:dead-letter:moderation, and the next comes.
"""

import os
import sys
from contextlib import suppress

from redis import Redis

from fetcher import Event, consume

MOST = 3


def has_link(event: Event) -> bool:
    """Tell whether it is a link in a chat."""
    message = event.message
    return bool(event.peer.cid and message and ("link" in message.attachments or "://" in message.text))


def main() -> None:
    """Moderate for ever."""
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    for event in consume(redis, group="moderation", consumer=sys.argv[1], attempts=3):
        if has_link(event):
            links = f"moderation:links:{event.peer.bpid}:{event.user.uuid}"
            redis.sadd(links, event.event_id)
            if redis.scard(links) >= MOST:
                print(f"{event.user.name} (@{event.user.nick}) posts links in «{event.peer.name}»", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it
        main()
