"""Bots of other libraries, fed from the stream with RAW=1: from VK to the bus to their handlers, and back to VK."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.processes import ROOT, Fetcher
from tests.servers import Server, wait_until
from tests.vk import CHAT, METHODS, PEER, PERSON, VK, message, reaction, update

# Both libraries' requests are led to the VK of the tests.
RUN = """
import os, runpy, sys
from vkbottle import AiohttpClient
from tests.run import lead_vk_to

url = os.environ["VK_URL"]
lead_vk_to(url)
request = AiohttpClient.request

def request_there(self, address, *more, **named):
    return request(self, f"{url}/{address.split('/', 3)[3]}", *more, **named)

AiohttpClient.request = request_there
runpy.run_path(sys.argv[1], run_name="__main__")
"""

Start = Callable[..., Fetcher]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Where VK was asked to send a message to, and its text."""
    sent: list[tuple[int, str]] = []

    def send(vk: VK, params: dict[str, Any]) -> Any:
        peer = params.get("peer_ids") or params.get("peer_id") or params.get("user_id") or CHAT + int(params["chat_id"])
        sent.append((int(peer), params["message"]))
        return [{"peer_id": int(peer), "message_id": 0}] if "peer_ids" in params else 0

    monkeypatch.setitem(METHODS, "messages.send", send)
    return sent


@pytest.fixture(params=["vkbottle_bot.py", "vk_api_script.py"])
def run(request: pytest.FixtureRequest, vk: VK, server: Server) -> Iterator[Callable[[], Any]]:
    """Start the example, as its docstring says, as often as wanted; only one of it at a time."""
    settings = {"VK_URL": vk.url, "TOKEN": vk.token, "REDIS_URL": server.url, "PYTHONPATH": str(ROOT)}
    environment = {"PATH": os.environ["PATH"]} | settings
    code = ["-c", RUN, str(ROOT / "examples" / request.param), "bot-1"]
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as directory:  # vk_api leaves a file there

        def start() -> Any:
            stop()
            processes.append(subprocess.Popen([sys.executable, *code], env=environment, cwd=directory))
            return processes[-1]

        def stop() -> None:
            for process in processes:
                process.kill()
                process.wait()

        yield start
        stop()


def test_bot_of_another_library(
    vk: VK, server: Server, fetch: Start, run: Callable[[], Any], sent: list[tuple[int, str]]
) -> None:
    """Its handlers get what VK sent, once each; also what was sent while it did not run."""
    fetch(RAW=1)
    bot = run()
    ping, pong = ("/ping a", "pong a") if "vkbottle" in bot.args[3] else ("/ping", "pong")

    def joined(user: int) -> dict[str, Any]:
        return update("group_join", {"user_id": user, "join_type": "join"})

    with server.client() as client:
        wait_until(lambda: client.xinfo_groups("events"), what="the bot's group")
        vk.push(message(ping), message(ping, peer=PERSON), reaction(), joined(PERSON), message("пока"), message(ping))
        expected = [(PEER, pong), (PERSON, "Welcome!"), (PEER, pong)]
        wait_until(lambda: sent == expected or bot.poll() is not None, what="the answers")
        assert sent == expected
        bot.kill()
        vk.push(joined(5))
        wait_until(lambda: client.xinfo_stream("events")["length"] == 7, what="the event")
        assert sent == expected
        run()
        wait_until(lambda: (5, "Welcome!") in sent, what="the answer to what was sent meanwhile")
        assert set(sent) == {*expected, (5, "Welcome!")}, "the event that it was killed with may have come again"
