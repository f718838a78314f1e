"""Answer commands with vkbottle. Asynchronous and durable: commands sent while this is not running are answered later.

Several bots can share the work if each has its own name. TOKEN is the community's token, with the *messages* right;
REDIS_URL is the address of the bus. Both are read from the environment or from `.env`. This needs vkbottle (pip install
vkbottle). Run it in the repository's directory: python -m examples.async_bot bot-1
"""

import asyncio
import os
import sys
import zlib
from contextlib import suppress

from aiohttp import ClientError
from dotenv import load_dotenv
from redis.asyncio import Redis
from vkbottle import API, VKAPIError

from fetcher import Event
from fetcher.asyncio import consume


async def ping(event: Event) -> str:
    """Say that the bot is running."""
    return f"{event.user.firstname}, I am here."


async def where(event: Event) -> str:
    """Say which chat this is."""
    return f"This is «{event.peer.name}», {event.peer.bpid}."


COMMANDS = {"ping": ping, "where": where}


async def main() -> None:
    """Answer commands forever."""
    load_dotenv(".env", interpolate=False)
    if not (token := os.environ.get("TOKEN")):
        sys.exit("TOKEN is missing: put the community's token into .env or into the environment.")
    if len(sys.argv) < 2:
        sys.exit("The consumer's name is missing: python -m examples.async_bot bot-1")
    redis = Redis.from_url(os.environ.get("REDIS_URL") or "redis://localhost:6379/0")
    api = API(token)
    async for event in consume(redis, group="bot", consumer=sys.argv[1], bus=os.environ.get("BUS") or "events"):
        if event.event_type != "command" or not event.message:
            continue
        if command := COMMANDS.get(event.message.text[1:].split()[0].lower()):
            # VK sends only one message per random_id, so an event that is delivered again is not answered again.
            random_id = zlib.crc32(event.event_id.encode()) >> 1
            try:
                # https://dev.vk.com/ru/method/messages.send
                await api.messages.send(peer_id=event.peer.bpid, message=await command(event), random_id=random_id)
            except (VKAPIError, ClientError) as error:
                print(f"{event.event_id} stays unanswered: {type(error).__name__}", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it
        asyncio.run(main())
