"""A vk_api script that reads its updates from the stream: its handler is unchanged, and no update is missed.

The fetcher must run with RAW=1. TOKEN is the community's token, REDIS_URL is the address of the bus; both are read from
the environment or from `.env`. Several scripts can share the work if each has its own name. After a crash, an event may
be delivered again. Run this in the repository's directory: python -m examples.vk_api_script script-1
"""

import os
import sys
from contextlib import suppress
from typing import Any

from dotenv import load_dotenv
from redis import Redis
from vk_api import VkApi
from vk_api.bot_longpoll import VkBotEvent, VkBotEventType, VkBotLongPoll

from fetcher import consume


def handle(vk: Any, event: VkBotEvent) -> None:
    """Handle an update, as the body of the loop over longpoll.listen() did."""
    if event.type == VkBotEventType.MESSAGE_NEW:
        print(f"{event.message.from_id}: {event.message.text}", flush=True)
        if event.from_chat and event.message.text == "/ping":
            vk.messages.send(chat_id=event.chat_id, message="pong", random_id=0)
    elif event.type == VkBotEventType.GROUP_JOIN:
        vk.messages.send(user_id=event.obj.user_id, message="Welcome!", random_id=0)


def main() -> None:
    """Handle updates forever. If the handler raises, the event is not acknowledged, so a restart delivers it again."""
    load_dotenv(".env", interpolate=False)
    if not (token := os.environ.get("TOKEN")):
        sys.exit("TOKEN is missing: put the community's token into .env or into the environment.")
    if len(sys.argv) < 2:
        sys.exit("The consumer's name is missing: python -m examples.vk_api_script script-1")
    redis = Redis.from_url(os.environ.get("REDIS_URL") or "redis://localhost:6379/0")
    vk = VkApi(token=token, api_version="5.199").get_api()
    for event in consume(redis, group="vk_api", consumer=sys.argv[1], bus=os.environ.get("BUS") or "events"):
        if event.raw:
            event_class = VkBotLongPoll.CLASS_BY_EVENT_TYPE.get(event.raw["type"], VkBotEvent)
            handle(vk, event_class(event.raw))  # VkBotMessageEvent for messages
        else:
            print(f"{event.event_id} is skipped: it was published without `raw`, set RAW=1 for the fetcher", flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C ends it
        main()
