"""The floor: vk_api's listen() and one pipelined publish of the raw updates per batch; no names, contract or safety."""

import json
import os

from redis import Redis
from vk_api import VkApiGroup
from vk_api.bot_longpoll import VkBotLongPoll

from tests.run import redirect_vk_to


def main() -> None:
    """Publish forever."""
    redis = Redis.from_url(os.environ["REDIS_URL"])
    longpoll = VkBotLongPoll(VkApiGroup(token=os.environ["TOKEN"], api_version="5.199"), os.environ["GROUPID"])
    while True:
        events = longpoll.check()  # listen() is this loop, but does not show where a batch ends
        if events:
            pipeline = redis.pipeline(transaction=False)
            for event in events:
                pipeline.publish(f"events:{event.raw['type']}", json.dumps(event.raw, ensure_ascii=False))
            pipeline.execute()


if __name__ == "__main__":
    redirect_vk_to(os.environ["VK_URL"])
    main()
