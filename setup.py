"Hands settings.ini to setuptools."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
config = ConfigParser()
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
name = settings["lib_name"]

setup(
    name=name,
    version=settings["version"],
    description=settings["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    url=settings["repository"],
    keywords=settings["keywords"].split(),
    license=settings["license"],
    python_requires=f">={settings['min_python']}",
    packages=find_packages(include=[name, f"{name}.*"]),
    package_data={
        name: [
            *(f"weights/**/*.{suffix}" for suffix in ("json", "txt", "safetensors")),
            "presets/*.toml",
            "*/static/*",
            "*/templates/*",
        ]
    },
    install_requires=settings["requirements"].split(),
    extras_require={
        **{
            extra: settings[f"{extra}_requirements"].split()
            for extra in ("prepare", "score", "widgets", "browser", "site", "train", "adam8bit", "prompts")
        },
        "dev": [
            name
            for extra in ("prepare", "score", "widgets", "train", "dev")
            for name in settings[f"{extra}_requirements"].split()
        ],
    },
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
