"""Report anyone who posts a third link in a chat. Durable: messages sent while this is not running are checked later.

Several workers can share the work if each has its own name. REDIS_URL, the address of the bus, is read from the
environment or from `.env`. Run this in the repository's directory: python -m examples.moderation_worker moderation-1

An event may be delivered again after a crash, so each person's links are kept as a set of event_ids, not as a counter.
An event that crashes the worker three times becomes a dead letter in the stream {events}:dead-letter:moderation, and
the worker continues with the next event.
"""

import os
import sys
from contextlib import suppress

from dotenv import load_dotenv
from redis import Redis

from fetcher import Event, consume

MAX_LINKS = 2


def has_link(event: Event) -> bool:
    """Return whether the event is a message with a link, sent in a chat."""
    message = event.message
    return bool(event.peer.cid and message and ("link" in message.attachments or "://" in message.text))


def main() -> None:
    """Check messages forever."""
    load_dotenv(".env", interpolate=False)
    if len(sys.argv) < 2:
        sys.exit("The consumer's name is missing: python -m examples.moderation_worker moderation-1")
    redis = Redis.from_url(os.environ.get("REDIS_URL") or "redis://localhost:6379/0")
    bus = os.environ.get("BUS") or "events"
    for event in consume(redis, group="moderation", consumer=sys.argv[1], bus=bus, attempts=3):
        if has_link(event):
            links = f"moderation:links:{event.peer.bpid}:{event.user.uuid}"
            redis.sadd(links, event.event_id)
            if redis.scard(links) > MAX_LINKS:
                print(f"{event.user.name} (@{event.user.nick}) posts links in «{event.peer.name}»", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it
        main()
