"""A relay on vkbottle: its poller and its API client, names cached in memory, one pipelined publish for each batch."""

import asyncio
import json
import os
from typing import Any

from redis.asyncio import Redis
from vkbottle import API, AiohttpClient
from vkbottle.polling import BotPolling

from bench.messages import event, who_and_where

VK_URL = os.environ["VK_URL"]


class Http(AiohttpClient):
    """vkbottle's client, with VK's addresses redirected to the VK of the tests."""

    def request(self, url: str, *arguments: Any, **more: Any) -> Any:
        """Send the request there: https://api.vk.ru/... becomes VK_URL/..."""
        return super().request(VK_URL + "/" + url.split("/", 3)[3], *arguments, **more)


async def main() -> None:
    """Publish forever."""
    api = API(os.environ["TOKEN"], http_client=Http())
    redis = Redis.from_url(os.environ["REDIS_URL"])
    users: dict[int, dict[str, Any]] = {}
    titles: dict[int, str] = {}
    async for batch in BotPolling(api, int(os.environ["GROUPID"])).listen():
        pipeline = redis.pipeline(transaction=False)
        for update in batch["updates"]:
            user_id, peer_id = who_and_where(update)
            if user_id not in users:
                answer = await api.request("users.get", {"user_ids": user_id, "fields": "domain", "lang": "ru"})
                users[user_id] = answer["response"][0]
            if peer_id not in titles and peer_id == user_id:
                titles[peer_id] = "{first_name} {last_name}".format(**users[user_id])
            elif peer_id not in titles:
                found = (await api.request("messages.getConversationsById", {"peer_ids": peer_id}))["response"]["items"]
                titles[peer_id] = found[0].get("chat_settings", {}).get("title", "") if found else ""
            made = event(update, users[user_id], titles[peer_id])
            pipeline.publish(f"events:{made['event_type']}", json.dumps(made, ensure_ascii=False))
        await pipeline.execute()


if __name__ == "__main__":
    asyncio.run(main())
