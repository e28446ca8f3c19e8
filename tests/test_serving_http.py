"""vLLM's own server with the plugin, on loopback, asked by the stock client of OpenAI."""

import base64
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE_PICTURE, ROOT, free_port
from PIL import Image
from serving_vllm import MARKS, OPTIONS, environment

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.masks_finecaption import MaskError, as_mask

pytestmark = [*MARKS, pytest.mark.slow]  # starting an engine takes half a minute

BADGE, TOP = {"box_xyxy": [100, 149, 160, 209]}, {"box_xyxy": [178, 25, 249, 96]}
START_S, ANSWER_S = 900, 120


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(EXAMPLE_PICTURE).convert("RGB")


@pytest.fixture(scope="module")
def expected(embedded: Any, picture: Image.Image) -> list[str]:
    records = ask(FineCaptionDescriber(*embedded), picture, [BADGE, TOP, None], max_new_tokens=24)
    return [record["answers"]["region"] for record in records]


@pytest.fixture(scope="module", params=[False, True], ids=["stock", "trusting"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, bool]]:
    """A client of a server, and whether that takes regions beside the pictures."""
    import openai

    folder, port = tmp_path_factory.mktemp("server"), free_port()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items() if value is not True]
    options += ["--enforce-eager", "--dtype=float32", "--host=127.0.0.1", f"--port={port}"]
    if request.param:
        options.append("--trust-request-mm-kwargs")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={EMBEDDED_CHECKPOINT}", *options]
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=file, stderr=file)
    client = openai.OpenAI(api_key="none", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0, timeout=ANSWER_S)
    try:
        end = time.monotonic() + START_S
        while True:
            try:
                client.models.list()
                break
            except openai.APIConnectionError:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"The server did not start: {log.read_text()[-3000:]}")
                time.sleep(1)
        yield client, request.param
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)


def sent(picture: Image.Image, question: str, **part: Any) -> list[dict[str, Any]]:
    file = io.BytesIO()
    picture.save(file, "png")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}, **part}, {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


def said(client: Any, messages: list[dict[str, Any]], **body: Any) -> str:
    (model,) = client.models.list().data
    answer = client.chat.completions.create(
        model=model.id, messages=messages, temperature=0, max_tokens=24, extra_body=body or None
    )
    return str(answer.choices[0].message.content).strip()


def test_the_server_answers_like_the_engine(
    server: tuple[Any, bool], picture: Image.Image, embedded: Any, expected: list[str]
) -> None:
    import openai

    client, trusting = server
    question = embedded[1].questions["region"]
    assert said(client, sent(picture, question)) == expected[2]
    for region, text in zip((BADGE, TOP), expected):
        shown = picture.copy()
        shown.putalpha(Image.fromarray(as_mask(region, picture.height, picture.width)))
        assert said(client, sent(shown, question)) == text
    alone = sent(picture, question)
    if not trusting:
        with pytest.raises(openai.BadRequestError, match="trust-request-mm-kwargs"):
            said(client, alone, mm_processor_kwargs={"masks": [BADGE]})
        return
    for region, text in zip((BADGE, TOP, None), expected):
        assert said(client, alone, mm_processor_kwargs={"masks": [region]}) == text
        named = sent(picture, question, uuid="one for all")
        assert said(client, named, mm_processor_kwargs={"masks": [region]}) == text
    for bad in ({"box_xyxy": [900, 900, 950, 950]}, {"polygon": [[1, 2]]}, "~", [], {}):
        with pytest.raises(MaskError) as told:
            as_mask(bad, picture.height, picture.width)
        with pytest.raises(openai.BadRequestError) as caught:
            said(client, alone, mm_processor_kwargs={"masks": [bad]})
        assert caught.value.status_code == 400 and str(told.value) in caught.value.body["message"], bad
    with pytest.raises(openai.BadRequestError, match="2 masks arrived for 1 pictures"):
        said(client, alone, mm_processor_kwargs={"masks": [BADGE, TOP]})
    assert said(client, alone, mm_processor_kwargs={"masks": [BADGE]}) == expected[0]


START = """
import json, sys
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    llm = LLM(sys.argv[1], **json.loads(sys.argv[2]))
    (output,) = llm.generate("what is it", SamplingParams(max_tokens=2, min_tokens=2), use_tqdm=False)
    print("TOKENS", len(output.outputs[0].token_ids))
"""


def started(model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A model in vLLM, in processes that find the plugin by its entry point; `folder` comes first on their path."""
    (folder / "start.py").write_text(START)
    command = [sys.executable, "start.py", str(model), json.dumps(OPTIONS)]
    return subprocess.run(command, env=environment(folder), cwd=folder, capture_output=True, text=True, timeout=START_S)


def test_another_model_starts_where_the_plugin_fails(embedded: Any, tmp_path: Path) -> None:
    """A Llama, where each process of vLLM fails to import what the plugin needs."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = embedded[1].tokenizer
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['finecaption_hf.configuration_finecaption'] = None\n"
    )
    done = started(tmp_path / "llama", tmp_path)
    assert done.returncode == 0 and "TOKENS 2" in done.stdout, done.stderr[-3000:]
    refusals = (done.stderr + done.stdout).count("FineCaption cannot be served here; other models are not concerned.")
    assert refusals >= 2  # of this process and of the engine's


def test_a_start_in_another_release_ends_with_its_name(tmp_path: Path) -> None:
    about = tmp_path / "vllm-0.99.0+cpu.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.99.0+cpu\n")
    done = started(EMBEDDED_CHECKPOINT, tmp_path)
    assert done.returncode
    assert (
        "vLLM 0.99.0+cpu is installed, but FineCaption's plugin is for 0.32 and 0.33 only" in done.stderr + done.stdout
    )


def test_the_benchmark_compares_the_same_answers_and_reports_what_is_shared(tmp_path: Path) -> None:
    """One round is no measurement, so no time is judged."""
    result = tmp_path / "result.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), "--size=tiny", "--rounds=1", f"--json={result}"]
    settings = {**environment(tmp_path), "PYTHONSAFEPATH": ""}
    subprocess.run([*command, "--regions=2", "--questions=3"], check=True, env=settings, cwd=tmp_path, timeout=START_S)
    figures = json.loads(result.read_text())
    assert figures["same_answers"] == figures["answers"] == 6
    assert figures["tower_share"] == 0.5 and 0.3 < figures["prefix_share"] < 1
    assert min(figures["seconds"].values()) > 0


SPLIT = """
import json, sys
from PIL import Image
from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import ask
from finecaption_hf.serving.vllm_describer import VllmDescriber

if __name__ == "__main__":
    regions, options = json.loads(sys.argv[2]), json.loads(sys.argv[3])
    describer = VllmDescriber(EMBEDDED_CHECKPOINT, tensor_parallel_size=2, **options)
    records = ask(describer, Image.open(sys.argv[1]).convert("RGB"), regions, ["all", "region"], max_new_tokens=24)
    print("ANSWERS " + json.dumps(records), flush=True)
"""


def test_a_language_model_that_two_processes_split_answers_like_the_engine(
    embedded: Any, picture: Image.Image, tmp_path: Path
) -> None:
    regions = [BADGE, TOP, None]
    (tmp_path / "split.py").write_text(SPLIT)
    command = [sys.executable, "split.py", str(EXAMPLE_PICTURE), json.dumps(regions), json.dumps(OPTIONS)]
    done = subprocess.run(
        command, env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=START_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    expected = ask(FineCaptionDescriber(*embedded), picture, regions, ["all", "region"], max_new_tokens=24)
    assert json.loads(line.removeprefix("ANSWERS ")) == json.loads(json.dumps(expected))
