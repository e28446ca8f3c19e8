"""Fresh Python processes without the seconds of imports: forks of one that has imported libraries and nothing else."""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "timm", "transformers.pipelines", "transformers.trainer", "datasets")
LIBRARIES += tuple(f"transformers.models.{name}" for name in ("llama.modeling_llama", "clip.modeling_clip"))
LIBRARIES += ("transformers.models.sam.modeling_sam", "transformers.models.auto.modeling_auto")
# What libraries look at when it is needed, not when they are imported.
_READ_LATE = {"HF_TOKEN"}
_LIMIT_S = 300

# A fork ends as a script does, but for what takes seconds there: every object of every library being deleted.
_SERVER = """
import atexit, gc, importlib, json, os, sys

def run(code, arguments, environment, work, outputs):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(work)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    sys.argv = ["-c", *arguments]
    ended = 0
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as end:
        ended = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        ended = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(ended)

for name in sys.argv[1:]:
    importlib.import_module(name)
gc.freeze()  # what is never looked at is never copied
print("ready", flush=True)
for line in sys.stdin:
    process = os.fork()
    if process == 0:
        run(**json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


class FreshPython:
    """Starts processes of one environment, which know nothing of each other and have not imported this package.

    Args:
        environment: all of it; libraries are imported under it once, when the first process is started.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._server: subprocess.Popen[str] | None = None

    def run(self, code: str, *arguments: object, work: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run code in the folder `work`; under a changed environment that libraries would not notice, start anew."""
        code, texts = textwrap.dedent(code), [str(argument) for argument in arguments]
        environment = {**self.environment, **changes}
        if changes.keys() - _READ_LATE:
            command = [sys.executable, "-c", code, *texts]
            return subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, cwd=work, env=environment)
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder, name) for name in ("stdout", "stderr")]
            for path in outputs:
                path.touch()
            asked = {"code": code, "arguments": texts, "environment": environment, "work": str(work)}
            answer = self._ask(json.dumps({**asked, "outputs": [str(path) for path in outputs]}))
            return subprocess.CompletedProcess(code, int(answer), *(path.read_text() for path in outputs))

    def _ask(self, line: str) -> str:
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-c", _SERVER, *LIBRARIES],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self.environment,
                start_new_session=True,
            )
            atexit.register(self.close)
            self._read()
        assert self._server.stdin is not None
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return self._read()

    def _read(self) -> str:
        assert self._server is not None and self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], _LIMIT_S)[0]:
            self.close()
            raise TimeoutError(f"A process took more than {_LIMIT_S} seconds.")
        if not (answer := self._server.stdout.readline()):
            raise RuntimeError("The process that starts others has ended; see its traceback.")
        return answer

    def close(self) -> None:
        """End the process that starts others, and the one that it has started."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGKILL)
            self._server.communicate(timeout=_LIMIT_S)
            self._server = None


OURS = FreshPython(os.environ)
"""Under the environment of the tests, see conftest.py."""
