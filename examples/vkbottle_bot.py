"""A vkbottle bot that reads its updates from the stream: its handlers are unchanged, and no update is missed.

The fetcher must run with RAW=1. TOKEN is the community's token, REDIS_URL is the address of the bus; both are read from
the environment or from `.env`. Several bots can share the work if each has its own name. After a crash, an event may be
delivered again. This needs vkbottle (pip install vkbottle). Run it in the repository's directory:
python -m examples.vkbottle_bot bot-1
"""

import asyncio
import os
import sys
from contextlib import suppress

from dotenv import load_dotenv
from redis.asyncio import Redis
from vkbottle import GroupEventType, GroupTypes
from vkbottle.bot import Bot, Message

from fetcher.asyncio import consume

load_dotenv(".env", interpolate=False)
bot = Bot(os.environ.get("TOKEN"))


@bot.on.chat_message(text="/ping <word>")
async def ping(message: Message, word: str) -> str:
    """Answer in the chat."""
    return f"pong {word}"


@bot.on.message()
async def other_message(message: Message) -> None:
    """Print messages that are not answered."""
    print(f"{message.from_id}: {message.text}", flush=True)


@bot.on.raw_event(GroupEventType.GROUP_JOIN, dataclass=GroupTypes.GroupJoin)
async def group_join(event: GroupTypes.GroupJoin) -> None:
    """Greet a new member. The fetcher publishes this type of event as VK sends it."""
    await bot.api.messages.send(peer_id=event.object.user_id, message="Welcome!", random_id=0)


async def main() -> None:
    """Handle updates forever, in place of bot.run_polling().

    If a handler raises, vkbottle logs the error, and the next event is handled.
    """
    if not os.environ.get("TOKEN"):
        sys.exit("TOKEN is missing: put the community's token into .env or into the environment.")
    if len(sys.argv) < 2:
        sys.exit("The consumer's name is missing: python -m examples.vkbottle_bot bot-1")
    redis = Redis.from_url(os.environ.get("REDIS_URL") or "redis://localhost:6379/0")
    async for event in consume(redis, group="vkbottle", consumer=sys.argv[1], bus=os.environ.get("BUS") or "events"):
        if event.raw:
            await bot.process_event(event.raw)
        else:
            print(f"{event.event_id} is skipped: it was published without `raw`, set RAW=1 for the fetcher", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it
        asyncio.run(main())
