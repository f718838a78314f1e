"""A vk_api script that takes its updates from the stream: its handler is as it was, and nothing is missed.

The fetcher runs with RAW=1. TOKEN is the community's, REDIS_URL the bus. Several may share the work, each under a name
of its own, and after a crash an event may come again: python examples/vk_api_script.py script-1
"""

import os
import sys

from redis import Redis
from vk_api import VkApi
from vk_api.bot_longpoll import VkBotEvent, VkBotEventType, VkBotLongPoll

from fetcher import consume

vk = VkApi(token=os.environ["TOKEN"], api_version="5.199").get_api()


def handle(event: VkBotEvent) -> None:
    """Do what the loop over longpoll.listen() did."""
    if event.type == VkBotEventType.MESSAGE_NEW and event.from_chat and event.message.text == "/ping":
        vk.messages.send(chat_id=event.chat_id, message="pong", random_id=0)
    elif event.type == VkBotEventType.GROUP_JOIN:
        vk.messages.send(user_id=event.obj.user_id, message="Welcome!", random_id=0)


def main() -> None:
    """Handle for ever. What ends with an exception is not acknowledged: it comes again after a restart."""
    redis = Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379/0"))
    for event in consume(redis, group="vk_api", consumer=sys.argv[1]):
        if event.raw:  # what was published before the fetcher had RAW=1 has none
            event_class = VkBotLongPoll.CLASS_BY_EVENT_TYPE.get(event.raw["type"], VkBotEvent)
            handle(event_class(event.raw))  # VkBotMessageEvent for messages


if __name__ == "__main__":
    main()
