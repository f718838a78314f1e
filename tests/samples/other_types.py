"""VK's types without a builder: the object of each, who caused it, and where.

The fields are those of https://dev.vk.com/ru/api/community-events/json-schema and https://github.com/VKCOM/vk-api-schema,
and what libraries have recorded where the two differ.
"""

from typing import Any

GROUP, PERSON, AUTHOR, ADMIN, CHAT = 123456789, 111222333, 444555666, 222333444, 2000000007

message = {"date": 1764500900, "id": 7, "peer_id": CHAT, "conversation_message_id": 7, "text": "да", "attachments": []}
comment = {"id": 5, "from_id": PERSON, "date": 1764500900, "text": "да"}
deleted = {"owner_id": -GROUP, "id": 5, "deleter_id": PERSON}
post = {"id": 6, "from_id": PERSON, "owner_id": -GROUP, "date": 1764500900, "text": "да", "can_delete": 1}
topic = {"topic_id": 3, "topic_owner_id": -GROUP}
order = {"id": 1, "group_id": GROUP, "user_id": PERSON, "status": 0, "total_price": {"amount": "100"}}
like = {"liker_id": PERSON, "object_type": "post", "object_owner_id": -GROUP, "object_id": 3, "post_id": 0}
user = {"user_id": PERSON}
donation = {"amount": 100, "amount_without_fee": 90.5}

OTHER_TYPES: dict[str, tuple[dict[str, Any], int, int]] = {
    "message_reply": (message | {"from_id": -GROUP, "admin_author_id": ADMIN, "out": 1}, -GROUP, CHAT),
    "message_edit": (message | {"from_id": PERSON, "peer_id": PERSON}, PERSON, PERSON),
    "message_allow": (user | {"key": ""}, PERSON, PERSON),
    "message_deny": (user, PERSON, PERSON),
    "message_typing_state": ({"state": "typing", "from_id": PERSON, "to_id": -GROUP}, PERSON, PERSON),
    "message_read": ({"from_id": PERSON, "peer_id": CHAT, "read_message_id": 7}, PERSON, CHAT),
    "photo_new": ({"id": 4, "album_id": 1, "owner_id": -GROUP, "sizes": []} | user, PERSON, PERSON),
    "photo_comment_new": (comment | {"photo_id": 4, "photo_owner_id": -GROUP}, PERSON, PERSON),
    "photo_comment_edit": (comment | {"photo_id": 4, "photo_owner_id": -GROUP}, PERSON, PERSON),
    "photo_comment_restore": (comment | {"photo_id": 4, "photo_owner_id": -GROUP}, PERSON, PERSON),
    "photo_comment_delete": (deleted | {"user_id": AUTHOR, "photo_id": 4}, AUTHOR, AUTHOR),
    "audio_new": ({"id": 4, "owner_id": -GROUP, "artist": "Хор", "title": "Гимн"}, -GROUP, -GROUP),
    "video_new": ({"id": 4, "owner_id": -GROUP, "title": "Клип"}, -GROUP, -GROUP),
    "video_comment_new": (comment | {"video_id": 4, "video_owner_id": -GROUP}, PERSON, PERSON),
    "video_comment_edit": (comment | {"video_id": 4, "video_owner_id": -GROUP}, PERSON, PERSON),
    "video_comment_restore": (comment | {"video_id": 4, "video_owner_id": -GROUP}, PERSON, PERSON),
    "video_comment_delete": (deleted | {"user_id": AUTHOR, "video_id": 4}, AUTHOR, AUTHOR),
    "wall_post_new": (post, PERSON, PERSON),
    "wall_repost": (post | {"owner_id": PERSON, "copy_history": [post]}, PERSON, PERSON),
    "wall_schedule_post_new": (post | {"from_id": -GROUP, "created_by": ADMIN}, -GROUP, -GROUP),
    "wall_schedule_post_delete": ({"id": 6, "owner_id": -GROUP}, -GROUP, -GROUP),
    "wall_reply_new": (comment | {"post_id": 6, "post_owner_id": -GROUP, "owner_id": -GROUP}, PERSON, PERSON),
    "wall_reply_edit": (comment | {"post_id": 6, "post_owner_id": -GROUP, "owner_id": -GROUP}, PERSON, PERSON),
    "wall_reply_restore": (comment | {"post_id": 6, "post_owner_id": -GROUP, "owner_id": -GROUP}, PERSON, PERSON),
    "wall_reply_delete": (deleted | {"post_id": 6}, PERSON, PERSON),
    "board_post_new": (comment | topic, PERSON, PERSON),
    "board_post_edit": (comment | topic, PERSON, PERSON),
    "board_post_restore": (comment | topic | {"from_id": -GROUP}, -GROUP, -GROUP),
    "board_post_delete": (topic | {"id": 5}, -GROUP, -GROUP),
    "market_comment_new": (comment | {"market_owner_id": -GROUP, "item_id": 8}, PERSON, PERSON),
    "market_comment_edit": (comment | {"market_owner_id": -GROUP, "item_id": 8}, PERSON, PERSON),
    "market_comment_restore": (comment | {"market_owner_id": -GROUP, "item_id": 8}, PERSON, PERSON),
    "market_comment_delete": ({"owner_id": -GROUP, "id": 5, "item_id": 8} | user, PERSON, PERSON),
    "market_order_new": (order, PERSON, PERSON),
    "market_order_edit": (order | {"status": 1}, PERSON, PERSON),
    "like_add": (like, PERSON, PERSON),
    "like_remove": (like | {"thread_reply_id": 0}, PERSON, PERSON),
    "poll_vote_new": ({"owner_id": -GROUP, "poll_id": 1, "option_id": 2} | user, PERSON, PERSON),
    "group_join": (user | {"join_type": "join"}, PERSON, PERSON),
    "group_leave": (user | {"self": 1}, PERSON, PERSON),
    "user_block": (user | {"admin_id": ADMIN, "unblock_date": 0, "reason": "", "comment": ""}, PERSON, PERSON),
    "user_unblock": (user | {"admin_id": ADMIN, "by_end_date": 1}, PERSON, PERSON),
    "group_officers_edit": (user | {"admin_id": ADMIN, "level_old": 0, "level_new": 3}, PERSON, PERSON),
    "group_change_settings": (user | {"changes": {"title": {"old_value": "а", "new_value": "б"}}}, PERSON, PERSON),
    "group_change_photo": (user | {"photo": {"id": 4, "owner_id": -GROUP, "user_id": ADMIN}}, PERSON, PERSON),
    "lead_forms_new": (user | {"lead_id": 1, "group_id": GROUP, "form_id": 2, "answers": []}, PERSON, PERSON),
    "vkpay_transaction": ({"from_id": PERSON, "amount": 1000, "description": "", "date": 1764500900}, PERSON, PERSON),
    "app_payload": (user | {"app_id": 1, "payload": "{}", "group_id": GROUP}, PERSON, PERSON),
    "donut_subscription_create": (user | donation, PERSON, PERSON),
    "donut_subscription_prolonged": (user | donation, PERSON, PERSON),
    "donut_subscription_expired": (user, PERSON, PERSON),
    "donut_subscription_cancelled": (user, PERSON, PERSON),
    "donut_subscription_price_changed": (user | {"amount_old": 100, "amount_new": 200}, PERSON, PERSON),
    "donut_money_withdraw": (donation, -GROUP, -GROUP),
    "donut_money_withdraw_error": ({"reason": "нет денег"}, -GROUP, -GROUP),
}
