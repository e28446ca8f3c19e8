"""What the tests with vLLM share: its settings on a machine without GPU and network, and a FineCaption in it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

MARKS = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: scripts/test --vllm does that"),
    # Of vLLM itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
SETTINGS = {
    "VLLM_HOST_IP": "127.0.0.1",  # else it listens on the address of the host's name
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
OPTIONS: dict[str, Any] = {"max_model_len": 512, "enforce_eager": True, "max_num_seqs": 72, "block_size": 32}


@contextmanager
def engine(model: str | os.PathLike[str], **options: Any) -> Iterator[Any]:
    """A `VllmDescriber` with all of vLLM in this process."""
    from finecaption_hf.serving.vllm_describer import VllmDescriber

    with pytest.MonkeyPatch.context() as patches:
        for name, value in {**SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}.items():
            patches.setenv(name, value)
        describer = VllmDescriber(model, **{**OPTIONS, **options})
        yield describer
        describer.llm.llm_engine.engine_core.shutdown()


def environment(folder: Path) -> Mapping[str, str]:
    """For processes that find the plugin by its entry point, as where the package is installed."""
    about = folder / "finecaption_hf-0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: finecaption-hf\nVersion: 0\n")
    text = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    entries = text.partition("[options.entry_points]\n")[2].partition("\n# ")[0]
    assert "vllm.general_plugins" in entries
    lines = [
        line.strip() if line.startswith(" ") else f"[{line.rstrip(' =')}]" for line in entries.splitlines() if line
    ]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    path = os.pathsep.join([str(folder), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **SETTINGS, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
