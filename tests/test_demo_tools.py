"""`finecaption demo --mcp`: what an agent finds and gets there, asked with the protocol's own client."""

import asyncio
import base64
import contextlib
import io
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE_MASK, EXAMPLE_PICTURE, ROOT
from demo_server import Command, running_demo, send
from PIL import Image

from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.masks_finecaption import as_mask

pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")
pytest.importorskip("mcp", reason="mcp (the extra of that name) is not installed")

BOX = {"box_xyxy": [178, 25, 249, 96]}
LIMIT_S = 120


def as_url(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with running_demo(tmp_path_factory.mktemp("demo"), "--mcp") as running:
        yield running


def in_session(command: Command, use: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def run() -> Any:
        async with (
            streamable_http_client(f"{command.address}mcp") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await use(session)

    return asyncio.run(asyncio.wait_for(run(), LIMIT_S))


def call(command: Command, **arguments: Any) -> Any:
    return in_session(command, lambda session: session.call_tool("describe_regions", arguments))


def test_agent_finds_one_tool_whose_types_and_words_say_how_to_call_it(command: Command) -> None:
    (tool,) = in_session(command, lambda session: session.list_tools()).tools
    assert tool.name == "describe_regions" and tool.annotations.readOnlyHint
    assert "knows rendered scenes only" in tool.description
    schema = tool.inputSchema
    assert schema["required"] == ["image"] and schema["properties"]["image"]["type"] == "string"
    assert all(len(it["description"]) > 30 for it in schema["properties"].values())
    for name in ("Color", "region", "dense"):
        assert name in schema["properties"]["questions"]["description"]
    forms = schema["$defs"]
    assert {name: set(form["properties"]) for name, form in forms.items()} == {
        "Box": {"box_xyxy"},
        "Polygon": {"polygon"},
        "Rle": {"size", "counts"},
    }
    assert all(it["description"] for form in forms.values() for it in (form, *form["properties"].values()))
    answered = tool.outputSchema["properties"]
    assert set(answered) == {"model", "model_note", "records"} and all(it for it in answered.values())
    assert set(tool.outputSchema["$defs"]["Record"]["properties"]) == {"region_index", "box_xyxy", "area", "answers"}


def test_answers_are_those_of_ask_for_regions_in_every_form(command: Command, embedded: Any) -> None:
    picture = Image.open(EXAMPLE_PICTURE)
    mask = as_mask(Image.open(EXAMPLE_MASK), picture.height, picture.width)
    polygon = {"polygon": [[100, 149, 160, 149, 160, 209]]}
    regions = [BOX, polygon, mask, mask]
    expected = ask(FineCaptionDescriber(*embedded), picture, regions, ["region", "Color"])
    found = call(
        command,
        image=as_url(EXAMPLE_PICTURE),
        regions=[BOX, polygon, encode_rle(mask), as_url(EXAMPLE_MASK)],
        questions=["region", "color"],
    )
    assert not found.isError
    assert found.structuredContent["records"] == expected
    assert found.structuredContent["model_note"].startswith("finecaption-tiny knows rendered scenes only")
    assert json.loads(found.content[0].text) == found.structuredContent, "a client without structures gets JSON"
    whole = call(command, image=as_url(EXAMPLE_PICTURE)).structuredContent["records"]
    assert whole == ask(FineCaptionDescriber(*embedded), picture, None, ["region"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": "https://example.com/a.png"}, "Send data:image/png;base64"),
        ({"image": "/etc/passwd"}, "Send data:image/png;base64"),
        ({"image": {"path": "/etc/passwd"}}, "string"),
        ({"image": "data:image/png;base64,AAAA"}, "cannot be decoded"),
        ({"regions": [{"box_xyxy": [10, 10, 10, 20]}]}, "degenerate"),
        ({"regions": [{"box_xyxy": [1, 2, 3]}]}, "at least 4"),
        ({"regions": [BOX, "file:///etc/passwd"]}, "regions[1]"),
        ({"regions": [BOX] * 33}, "at most 32"),
        ({"questions": [" "]}, "Nothing is asked"),
    ],
)
def test_agent_is_told_what_is_wrong_and_nothing_else_is_opened(
    command: Command, changed: dict[str, Any], message: str
) -> None:
    found = call(command, **{"image": as_url(EXAMPLE_PICTURE), **changed})
    assert found.isError and message in found.content[0].text and "root:" not in found.content[0].text
    assert command.tried == []


def test_no_file_of_the_server_is_opened_for_what_looks_like_an_upload(command: Command) -> None:
    upload = {"path": str(EXAMPLE_MASK), "meta": {"_type": "gradio.FileData"}}
    for region in (upload, {**encode_rle(Image.new("L", (256, 256), 255)), **upload}):
        found = call(command, image=as_url(EXAMPLE_PICTURE), regions=[region])
        assert found.isError and "Extra inputs are not permitted" in found.content[0].text


def test_pages_of_other_sites_and_endless_requests_are_kept_out(command: Command) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    accept = {"Accept": "application/json, text/event-stream", "Content_Type": "application/json"}
    assert send(command.address, "mcp", body, **accept)[0] == 200
    assert send(command.address, "mcp", body, **accept, Origin="https://example.com")[0] == 403
    assert send(command.address, "mcp", body, **accept, Host="example.com")[0] == 421
    assert send(command.address, "mcp", body + b" " * 20_000_000, **accept)[0] == 413


def test_program_of_the_documentation_runs(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8").partition("## For agents")[2]
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None and "http://127.0.0.1:7860/" in code[1]
    monkeypatch.chdir(ROOT)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code[1].replace("http://127.0.0.1:7860/", command.address), {})
    assert "'box_xyxy': [178, 25, 249, 96]" in out.getvalue() and "'Color': " in out.getvalue()


def test_without_the_option_there_is_no_tool_whatever_the_environment_says(
    embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finecaption_hf.demo.app import build_demo, launch_demo

    monkeypatch.setenv("GRADIO_MCP_SERVER", "true")
    demo = build_demo(FineCaptionDescriber(*embedded))
    try:
        address = launch_demo(demo)
        for path in ("mcp", "gradio_api/mcp/", "gradio_api/mcp/schema"):
            assert send(address, path, b"{}", Content_Type="application/json")[0] in (404, 405)
    finally:
        demo.close()
