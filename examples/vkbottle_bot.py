"""A vkbottle bot that takes its updates from the stream: its handlers are as they were, and nothing is missed.

The fetcher runs with RAW=1. TOKEN is the community's, REDIS_URL the bus. Several may share the work, each under a name
of its own, and after a crash an event may come again: python examples/vkbottle_bot.py bot-1
"""

import asyncio
import os
import sys

from redis.asyncio import Redis
from vkbottle import GroupEventType, GroupTypes
from vkbottle.bot import Bot, Message

from fetcher.asyncio import consume

bot = Bot(os.environ["TOKEN"])


@bot.on.chat_message(text="/ping <word>")
async def ping(message: Message, word: str) -> str:
    """Answer in the chat."""
    return f"pong {word}"


@bot.on.raw_event(GroupEventType.GROUP_JOIN, dataclass=GroupTypes.GroupJoin)
async def group_join(event: GroupTypes.GroupJoin) -> None:
    """Greet who joins the community: a type that the fetcher publishes as VK sends it."""
    await bot.api.messages.send(peer_id=event.object.user_id, message="Welcome!", random_id=0)


async def main() -> None:
    """Handle for ever, instead of bot.run_polling(). vkbottle logs what a handler raises; then the next event comes."""
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    async for event in consume(redis, group="vkbottle", consumer=sys.argv[1]):
        if event.raw:  # what was published before the fetcher had RAW=1 has none
            await bot.process_event(event.raw)


if __name__ == "__main__":
    asyncio.run(main())
