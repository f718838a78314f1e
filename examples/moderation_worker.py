"""Report anyone who posts a third link in a chat. Durable: nothing is missed while it is not running.

Several may share the work, each under a name of its own. REDIS_URL, the bus, comes from the environment or from `.env`.
Run it in the repository's directory: python -m examples.moderation_worker moderation-1
An event may be delivered again after a crash, so a person's links are a set of event_ids, not a counter. An event that
crashes it three times becomes a dead letter in the stream {events}:dead-letter:moderation, and the next one follows.
"""

import os
import sys
from contextlib import suppress

from dotenv import load_dotenv
from redis import Redis

from fetcher import Event, consume

MAX_LINKS = 2


def has_link(event: Event) -> bool:
    """Return whether it is a message with a link, in a chat."""
    message = event.message
    return bool(event.peer.cid and message and ("link" in message.attachments or "://" in message.text))


def main() -> None:
    """Moderate forever."""
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
