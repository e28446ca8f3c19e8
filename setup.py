"""Builds the package. What is not here is in setup.cfg: this makes README.md fit to be read elsewhere, as on PyPI."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parent
# To a file of the repository.
_LINK = re.compile(r"\[([^\[\]]+)\]\((?!https?:|#)([^)\s]+)\)")
_PICTURE = re.compile(r"<img [^>]*>\n*")


def readme(text: str, repository: str | None, version: str) -> str:
    """README.md where the files beside it are not.

    Args:
        text: of the README.
        repository: its address, under which the files of a version are; without one, links become their words, and
            pictures go.
        version: of the package.
    """
    if repository is None:
        return _PICTURE.sub("", _LINK.sub(r"\1", text))
    text = _LINK.sub(rf"[\1]({repository}/blob/v{version}/\2)", text)
    return text.replace('<img src="', f'<img src="{repository}/raw/v{version}/')


if __name__ == "__main__":
    from setuptools import setup

    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    urls = dict(line.split(" = ") for line in settings["metadata"]["project_urls"].strip().splitlines())
    version = re.search(r'^__version__ = "(.*)"$', (ROOT / "src/finecaption_hf/__init__.py").read_text(), re.M)[1]
    text = readme((ROOT / "README.md").read_text(encoding="utf-8"), urls.get("Repository"), version)
    setup(long_description=text, long_description_content_type="text/markdown")
