"""Draw docs/dashboard.png: the panels of deploy/grafana-dashboard.json as a run of the fetcher fills them.

`python -m bench.dashboard`: a fetcher between the tests' VK and a real Redis server that is stopped for a while, and a
Prometheus (the program must be installed) that reads its metrics and evaluates the panels' own expressions. Drawn by
matplotlib, not by Grafana. Takes four minutes.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tests import HOST, free_port
from tests.processes import ROOT, Fetcher
from tests.servers import Server
from tests.vk import VK, button, message, reaction, update

SECONDS, OUTAGE_START, OUTAGE_LENGTH = 200, 90, 30
MAKE = [message, message, message, lambda **more: message("/help", **more), button, reaction]
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs: [{{job_name: event-fetcher, static_configs: [{{targets: ["{host}:{port}"]}}]}}]
"""


def write(vk: VK, ended: threading.Event) -> None:
    """Let people write, at a varying rate, and VK send something odd now and then."""
    while not ended.wait(random.expovariate(8 + 6 * random.random())):
        made = random.choice(MAKE)(user=111222333 + random.randrange(500))
        if made["type"] == "message_new":
            made["object"]["message"]["date"] = int(time.time())
        vk.push(update("message_new", None) if random.random() < 0.003 else made)


def ask(port: int, path: str, **parameters: Any) -> list[Any]:
    """Query Prometheus."""
    url = f"http://{HOST}:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    result: list[Any] = json.load(urllib.request.urlopen(url))["data"]["result"]
    return result


def draw(panel: Any, axes: Any, port: int, start: float, end: float) -> None:
    """Draw one panel from what Prometheus answers to its expressions."""
    axes.set_title(panel["title"], fontsize=9, loc="left")
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "10s")
        if panel["type"] == "stat":
            value = float(ask(port, "query", query=expression, time=end)[0]["value"][1])
            unit = " s" if panel["fieldConfig"]["defaults"]["unit"] == "s" else ""
            axes.text(0.5, 0.45, f"{value:.0f}{unit}", ha="center", va="center", fontsize=22, color="tab:green")
            axes.set_axis_off()
            continue
        for series in ask(port, "query_range", query=expression, start=start, end=end, step=1):
            label = target["legendFormat"]
            for name, value in series["metric"].items():
                label = label.replace(f"{{{{{name}}}}}", "fetcher" if name == "instance" else value)
            points = [(float(at) - start, float(value)) for at, value in series["values"]]
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1)
    if panel["type"] != "stat":
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, end - start)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="upper left")


def main() -> None:
    """Run and draw."""
    if not shutil.which("prometheus"):
        sys.exit("The program prometheus is not installed: in Debian it is a package of this name")
    panels = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text(encoding="utf-8"))["panels"]
    port, prometheus_port, ended = free_port(), free_port(), threading.Event()
    with tempfile.TemporaryDirectory(prefix="prometheus-") as directory, VK() as vk, Server(aof=True) as server:
        Path(directory, "prometheus.yml").write_text(CONFIG.format(host=HOST, port=port))
        command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
        settings: dict[str, Any] = {"VK_URL": vk.url, "TOKEN": vk.token, "GROUPID": vk.group_id}
        settings |= {"REDIS_URL": server.url, "METRICS_PORT": port}
        monitor = subprocess.Popen(
            [*command, f"--web.listen-address={HOST}:{prometheus_port}"], stderr=subprocess.DEVNULL
        )
        try:
            with Fetcher(**settings):
                threading.Thread(target=write, args=(vk, ended), daemon=True).start()
                time.sleep(15)
                start = time.time()
                time.sleep(OUTAGE_START)
                server.stop()
                time.sleep(OUTAGE_LENGTH)
                server.start()
                time.sleep(SECONDS - OUTAGE_START - OUTAGE_LENGTH)
                rows = max(panel["gridPos"]["y"] for panel in panels)
                figure = plt.figure(figsize=(14, 12))
                for panel in panels:
                    place = panel["gridPos"]
                    height = 1 / (rows + 8)
                    box = (place["x"] / 24 + 0.025, 1 - (place["y"] + place["h"]) * height + 0.025)
                    size = (place["w"] / 24 - 0.04, place["h"] * height - 0.055)
                    draw(panel, figure.add_axes((*box, *size)), prometheus_port, start, time.time())
                figure.savefig(ROOT / "docs/dashboard.png", dpi=80)
        finally:
            ended.set()
            monitor.terminate()
            monitor.wait()


if __name__ == "__main__":
    main()
