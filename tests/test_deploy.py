"""What operators use: the image, the job, compose.yaml, and docs/operations.md, whose ACL rules are tried for real."""

import ast
import contextlib
import json
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from redis.exceptions import NoPermissionError

from fetcher import config, consume, subscribe
from fetcher.vk import FATAL, FATAL_AT_START
from tests.processes import Fetcher
from tests.servers import Server, address, wait_until
from tests.vk import GROUP, VK, button, message, reaction, update

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))

SETTINGS = set(re.findall('"([A-Z_]{3,})"', (ROOT / "fetcher" / "config.py").read_text(encoding="utf-8")))
SETTINGS -= set(config.LEVELS)

# --- The ACL rules ---------------------------------------------------------------------------------------

ACL = {name: rules.split() for name, rules in re.findall("^user (.+?) on >SECRET (.+)$", OPERATIONS, re.MULTILINE)}
UNFELT = {"+info", "+exists"}  # the fetcher itself does without


def rules(user: str) -> list[str]:
    """Return the rules that give the user something."""
    return [rule for rule in ACL[user] if rule[0] in "~&+"]


def acl(user: str, without: str = "") -> list[str]:
    return [f"user {user} on >SECRET " + " ".join(rule for rule in ACL[user] if rule != without)]


class Bus:
    """A bus with its checkpoint, and behind that four events and what makes none; all that arrives is looked at."""

    CHECKPOINT = f"{{events}}:ts:{GROUP}"

    def __init__(self, owner: redis.Redis, vk: VK) -> None:
        self.owner, self.live = owner, owner.pubsub(ignore_subscribe_messages=True)
        self.live.psubscribe("events:*")
        self.live.get_message(timeout=1)
        self.owner.set(self.CHECKPOINT, vk.ts)
        self.begun = str(vk.ts)
        vk.push(message("Hi!"), message("/command"), button(), reaction(), update("message_new", None))

    def is_untouched(self) -> bool:
        return self.owner.keys() == [self.CHECKPOINT] and self.owner.get(self.CHECKPOINT) == self.begun

    def has_everything_once(self) -> bool:
        wait_until(lambda: self.owner.exists(f"{{events}}:alive:{GROUP}:{os.uname().nodename}"), what="a heartbeat")
        wait_until(lambda: self.owner.get(self.CHECKPOINT) != self.begun, what="the commit")
        durable = [entry["event"] for _, entry in self.owner.xrange("events")]
        live = [self.live.get_message(timeout=1)["data"] for _ in durable]
        types = [json.loads(text)["event_type"] for text in durable]
        assert types == ["message", "command", "button", "reaction"]
        assert live == durable
        assert not self.live.get_message(timeout=0.01)
        return self.owner.xlen("{events}:dead-letter") == 1


@pytest.fixture
def try_acl(vk: VK) -> Iterator[Callable[[str], tuple[Bus, Fetcher]]]:
    """Start a fetcher whose Redis user has the rules of docs/operations.md, without one of them, and nothing else."""
    with contextlib.ExitStack() as stack:

        def start(without: str = "") -> tuple[Bus, Fetcher]:
            server = stack.enter_context(Server(acl=acl("fetcher", without)))
            bus = Bus(stack.enter_context(server.client()), vk)
            settings = {"VK_URL": vk.url, "TOKEN": vk.token, "GROUPID": vk.group_id, "POLL_WAIT": 1}
            url = address(server.port, "SECRET", "fetcher")
            return bus, stack.enter_context(Fetcher(**settings, REDIS_URL=url))

        yield start


def health(fetcher: Fetcher) -> tuple[int, list[str]]:
    with Fetcher("--health", **fetcher.settings) as check:
        return check.wait(), check.lines


def refused(bus: Bus) -> set[str]:
    return {entry["object"] for entry in bus.owner.acl_log()} - {"client|setinfo"}


def test_the_rules_suffice_for_the_fetcher(try_acl: Any) -> None:
    """It carries every type of event and a dead letter, and is healthy; nothing is refused to it."""
    bus, fetcher = try_acl()
    assert bus.has_everything_once()
    assert health(fetcher) == (0, [])
    assert fetcher.running
    assert not refused(bus)


@pytest.mark.parametrize("rule", sorted(set(rules("fetcher")) - UNFELT))
def test_each_rule_is_needed_by_the_fetcher(try_acl: Any, rule: str) -> None:
    """Without it the fetcher says so and ends before it changes anything; with it again, all goes out, once."""
    bus, fetcher = try_acl(rule)
    assert fetcher.wait() == 1
    assert "CRITICAL Redis refuses a permission" in fetcher.lines[-1]
    assert fetcher.output.count("CRITICAL") == 1
    assert "Traceback" not in fetcher.output
    assert bus.is_untouched()
    bus.owner.execute_command("ACL SETUSER", "fetcher", rule)
    fetcher.start()
    assert bus.has_everything_once()


@pytest.mark.parametrize("rule", sorted(UNFELT))
def test_rules_that_the_fetcher_itself_can_do_without(try_acl: Any, rule: str) -> None:
    """+info is a question it can do without outside of a cluster, +exists is --health's."""
    bus, fetcher = try_acl(rule)
    assert bus.has_everything_once()
    code, lines = health(fetcher)
    assert code == (rule == "+exists")
    assert ["Redis refuses a permission" in line for line in lines] == [True] * code
    assert refused(bus) == {rule[1:]}


def use(server: Server, client: redis.Redis) -> None:
    """Receive as consumers do: from one channel, from all, and twice from the stream."""
    event = {
        "event_type": "message", "event_id": "a", "peer": {"bpid": 1, "cid": 0, "name": ""},
        "user": {"uuid": 1, "name": "", "firstname": "", "lastname": "", "nick": ""},
        "message": {"cmid": 1, "text": "Hi!", "reply": None, "forward": [], "attachments": []},
    }  # fmt: skip
    ended = threading.Event()

    def publish() -> None:
        with server.client() as owner:
            while not ended.wait(0.01):
                owner.publish("events:message", json.dumps(event))

    with server.client() as owner:
        for _ in range(2):
            owner.xadd("events", {"event": json.dumps(event)})
    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        assert next(subscribe(client, "message")).as_dict() == event
        assert next(subscribe(client)).as_dict() == event
        durable = consume(client, "group", "consumer", start="0")
        assert [next(durable).as_dict(), next(durable).as_dict()] == [event, event]
    finally:
        ended.set()
        publisher.join()


@pytest.mark.parametrize("rule", ["", *rules("consumer")])
def test_the_rules_are_what_consumers_need(rule: str) -> None:
    """They suffice, and without any one of them something is refused."""
    expected = pytest.raises(NoPermissionError) if rule else contextlib.nullcontext()
    user = {"username": "consumer", "password": "SECRET"}
    with Server(acl=acl("consumer", rule)) as server, server.client(**user) as client, expected:
        use(server, client)


# --- The job ---------------------------------------------------------------------------------------------

DOCKER = """#!/bin/bash
echo "$PWD: $*" >>"$CALLS"
[[ " $FAILING " != *" $1${2:+-$2} "* && " $FAILING " != *" $1 "* ]]
"""
BUILD = "build . -t service.event-fetcher"
ASK = ["network inspect TOASTER", "container inspect service.event-fetcher"]
MAKE = "network create --subnet 172.18.0.0/24 --gateway 172.18.0.1 --ip-range 172.18.0.128/25 TOASTER"
REMOVE = ["stop service.event-fetcher", "rm -f service.event-fetcher"]
RUN = (
    "run -d --name service.event-fetcher --restart always --network TOASTER --ip 172.18.0.5 "
    "-e TOKEN -e GROUPID service.event-fetcher"
)
TIDY = "image prune -f --filter label=org.opencontainers.image.title=event-fetcher"


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """Run deploy/jenkins.sh with a `docker` that only takes notes, and fails where it is told to."""
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    calls = tmp_path / "calls"

    def run(failing: str = "", **credentials: str) -> tuple[int, str, list[str]]:
        calls.write_text("")
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "FAILING": failing}
        done = subprocess.run(
            [ROOT / "deploy" / "jenkins.sh"],
            cwd=tmp_path,
            env=environment | credentials,
            capture_output=True,
            text=True,
        )
        told = calls.read_text().splitlines()
        assert all(line.startswith(f"{ROOT}: ") for line in told), "the build's context is not the project"
        return done.returncode, done.stderr, [line.removeprefix(f"{ROOT}: ") for line in told]

    return run


SECRETS = {"TOKEN": "a secret, with $(blanks)", "GROUPID": "5"}


def test_the_job_replaces_the_container_after_the_build(job: Any) -> None:
    """First the image, then the network where it is missing, then the container; the token is in no argument."""
    assert job(**SECRETS) == (0, "", [BUILD, *ASK, *REMOVE, RUN, TIDY])
    missing = "network-inspect container-inspect"
    assert job(missing, **SECRETS) == (0, "", [BUILD, ASK[0], MAKE, ASK[1], RUN, TIDY])


@pytest.mark.parametrize(
    ("failing", "last"),
    [("build", BUILD), ("network", MAKE), ("stop", REMOVE[0]), ("rm", REMOVE[1]), ("run", RUN)],
)
def test_the_job_fails_where_a_step_fails(job: Any, failing: str, last: str) -> None:
    """It goes no further; after a failed build the old container is not touched."""
    code, _, calls = job(failing, **SECRETS)
    assert code != 0
    assert calls[-1] == last


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_the_job_names_a_missing_credential(job: Any, name: str) -> None:
    """One sentence, before anything is done."""
    for credentials in (SECRETS | {name: ""}, {other: SECRETS[other] for other in SECRETS.keys() - {name}}):
        code, said, calls = job(**credentials)
        assert code != 0
        assert said.count("\n") == 1
        assert f"{name} is not set" in said
        assert not calls


# --- The image -------------------------------------------------------------------------------------------


def instructions(name: str) -> list[str]:
    """Return what stands behind each instruction of that name, in one line each."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


def test_the_image_sets_only_known_settings() -> None:
    """What the image sets as environment means something to the fetcher.

    Build arguments stand behind all that is worth caching, and before a RUN: podman would take an old token's image.
    """
    names = re.findall(r"(\w+)=", " ".join(instructions("ENV")))
    assert sorted(names) == ["GROUPID", "REDIS_URL", "TOKEN"]
    assert set(names) <= SETTINGS
    assert DOCKERFILE.rindex("\nCOPY ") < DOCKERFILE.index("\nARG ") < DOCKERFILE.rindex("\nRUN ")


def test_the_image_runs_as_nobody_in_particular() -> None:
    """A numeric user, for a system that demands one; no shell between the signals and the fetcher."""
    assert instructions("USER") == ["10001:10001"]
    assert instructions("CMD") == ['["python", "main.py"]']
    (check,) = instructions("HEALTHCHECK")
    assert check.endswith(' CMD ["python", "main.py", "--health"]')


def test_the_image_holds_what_runs_and_nothing_else() -> None:
    """The packages of setup.py, in the versions of requirements.txt, before the sources; no .env, no history."""
    (install,) = [line for line in instructions("RUN") if line.startswith("pip install")]
    ranges = re.search(r"install_requires=\[(.+?)\]", (ROOT / "setup.py").read_text())
    assert ranges
    wanted = re.findall(r'"([\w-]+)', ranges[1])
    assert install.split("-c requirements.txt ")[1].split() == wanted
    assert DOCKERFILE.index(install) < DOCKERFILE.index("COPY main.py")
    copied = {line.split()[0] for line in instructions("COPY")}
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    assert {line[1:] for line in allowed if line.startswith("!")} == copied


def test_requirements_can_be_constraints() -> None:
    """pip allows no extras there."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


# --- Compose and .env ------------------------------------------------------------------------------------


def test_compose_gives_the_documents_network() -> None:
    """TOASTER with its addresses, and none of those that are fixed is given to another container."""
    (network,) = COMPOSE["networks"].values()
    assert network == {
        "name": "TOASTER",
        "ipam": {
            "config": [{"subnet": "172.18.0.0/24", "gateway": "172.18.0.1", "ip_range": "172.18.0.128/25"}],
        },
    }
    services = COMPOSE["services"]
    assert services["fetcher"]["networks"] == {"TOASTER": {"ipv4_address": "172.18.0.5"}}
    assert services["redis"]["networks"] == {"TOASTER": {"ipv4_address": "172.18.0.2"}}
    assert services["second"]["networks"] == ["TOASTER"]


def test_compose_runs_a_second_fetcher_only_when_asked() -> None:
    """It is the first one's twin, but for name and address."""
    first, second = dict(COMPOSE["services"]["fetcher"]), dict(COMPOSE["services"]["second"])
    assert second.pop("profiles") == ["second"]
    assert first.pop("container_name") == "service.event-fetcher"
    del first["networks"], second["networks"]
    assert first == second


def test_compose_gives_the_token_as_a_secret() -> None:
    """It comes from .env, and is in no container's environment; every other setting is handed on."""
    fetcher = COMPOSE["services"]["fetcher"]
    assert COMPOSE["secrets"] == {"token": {"environment": "TOKEN"}}
    assert fetcher["secrets"] == ["token"]
    environment = dict(fetcher["environment"])
    assert environment.pop("TOKEN_FILE") == "/run/secrets/token"
    assert environment.keys() == SETTINGS - {"TOKEN", "TOKEN_FILE", "REDIS_URL"}
    assert environment.pop("GROUPID").startswith("${GROUPID:?")
    assert environment == {name: f"${{{name}:-}}" for name in environment}
    assert "read_only" not in fetcher, "Compose refuses it beside such a secret"


def test_compose_keeps_everything_running_and_nothing_open() -> None:
    """Restarts, health checks, no rights that are not needed; Redis keeps its data and evicts nothing."""
    for service in COMPOSE["services"].values():
        assert service["restart"] == "unless-stopped"
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "ports" not in service
    server = COMPOSE["services"]["redis"]
    assert "PONG" in server["healthcheck"]["test"]
    assert server["volumes"] == ["redis:/data"]
    assert "redis" in COMPOSE["volumes"]
    with Server(**dict(re.findall(r"--(\S+) (\S+)", server["command"]))) as running, running.client() as client:
        assert client.config_get("appendonly", "maxmemory-policy") == {
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
        }


def test_the_example_names_every_setting_with_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, filled in, it changes nothing; with every line in use it does not, either."""
    monkeypatch.chdir(tmp_path)
    needed = {"TOKEN": "secret", "GROUPID": "5"}
    assert set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE)) == SETTINGS
    assert re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE) == [("TOKEN", ""), ("GROUPID", "")]
    defaults = config.read(needed)
    for text in (EXAMPLE, re.sub(r"^#(?=[A-Z_]+=)", "", EXAMPLE, flags=re.MULTILINE)):
        (tmp_path / ".env").write_text(text)
        assert config.read(needed) == defaults


# --- The document of operations --------------------------------------------------------------------------


def fatal_sentences() -> Iterator[str]:
    """Find the beginning of every sentence with which the fetcher ends for the operator to mend something."""
    yield from (re.split("[:;,]", sentence)[0] for sentence in (*FATAL.values(), *FATAL_AT_START.values()))
    for path in (ROOT / "fetcher").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Fatal":
                parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
                text = max((part for part in parts if isinstance(part, str)), key=len, default="")
                if not text.startswith(" (VK error"):  # those of the tables
                    yield re.split(": [a-z]|;", text.removeprefix("Redis: "))[0].strip()


def test_every_fatal_sentence_is_explained() -> None:
    """Whoever meets one finds it in docs/operations.md."""
    sentences = set(fatal_sentences())
    assert len(sentences) >= 10
    assert not [sentence for sentence in sentences if sentence not in OPERATIONS]
