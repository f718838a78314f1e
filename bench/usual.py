"""The usual design: three lookups and one publish for each event, as most bots do it."""

import json
import os

from redis import Redis
from vk_api import VkApiGroup
from vk_api.bot_longpoll import VkBotLongPoll

from bench.messages import event, who_and_where
from tests.run import redirect_vk_to


def main() -> None:
    """Publish forever."""
    redis = Redis.from_url(os.environ["REDIS_URL"])
    session = VkApiGroup(token=os.environ["TOKEN"], api_version="5.199")
    vk = session.get_api()
    for update in VkBotLongPoll(session, os.environ["GROUPID"]).listen():
        user_id, peer_id = who_and_where(update.raw)
        user = vk.users.get(user_ids=user_id, lang="ru")[0]
        nick = vk.users.get(user_ids=user_id, fields="domain")[0]["domain"]
        chats = vk.messages.getConversationsById(peer_ids=peer_id)["items"]
        title = chats[0].get("chat_settings", {}).get("title", "") if chats else ""
        made = event(update.raw, user | {"domain": nick}, title)
        redis.publish(f"events:{made['event_type']}", json.dumps(made, ensure_ascii=False))


if __name__ == "__main__":
    redirect_vk_to(os.environ["VK_URL"])
    main()
