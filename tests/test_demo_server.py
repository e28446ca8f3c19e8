"""`finecaption demo` as a process that listens: what it opens, what it refuses, and that nothing leaves the machine."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from conftest import EXAMPLE_PICTURE
from demo_server import Command, ask, file_data, running_demo, send, upload
from PIL import Image

from finecaption_hf.data.encoding import encode_rle

pytest.importorskip("gradio", reason="gradio (the extra demo) is not installed")

SECRET = "root:"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    with running_demo(tmp_path_factory.mktemp("demo")) as running:
        yield running


def _is_served(command: Command) -> bool:
    status, text = ask(command.address, {"image": file_data(upload(command.address)), "regions": []})
    return status == 200 and "Done." in text and '"success":true' in text.replace(" ", "")


def _is_refused(status: int, text: str) -> bool:
    return SECRET not in text and "Done." not in text and (status >= 400 or '"success":false' in text.replace(" ", ""))


def test_command_answers_and_tries_no_way_to_other_machines(command: Command) -> None:
    from gradio_client import Client, handle_file

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", command.address)
    client = Client(command.address, verbose=False)
    record = client.predict(
        handle_file(str(EXAMPLE_PICTURE)), {"box_xyxy": [178, 25, 249, 96]}, ["Color"], api_name="/describe"
    )
    assert record["answers"]["Color"] and _is_served(command)
    assert command.tried == []


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/passwd",
        "gradio_api/file=../../../../../etc/passwd",
        "gradio_api/file=%2Fetc%2Fpasswd",
        "gradio_api/file/etc/passwd",
        "gradio_api/file=file:///etc/passwd",
        "gradio_api/file=https://example.com/a.png",
        "gradio_api/file=http:%2F%2F127.0.0.1:22/a.png",
        "gradio_api/proxy=https://example.com/a.png",
        "gradio_api/proxy=http://127.0.0.1:22/",
        "static/../../../../../etc/passwd",
        "assets/..%2F..%2F..%2Fetc%2Fpasswd",
    ],
)
def test_nothing_is_served_but_uploads(command: Command, path: str) -> None:
    status, text = send(command.address, path)
    assert status >= 400 and SECRET not in text
    assert command.tried == [], "the server looked up a host that a request named"


def test_store_is_not_listed_and_its_links_are_not_followed(command: Command) -> None:
    stored = Path(upload(command.address))
    assert stored.is_relative_to(command.store), "uploads lie elsewhere than this test thinks"
    link = stored.parent / "link.png"
    link.unlink(missing_ok=True)
    link.symlink_to("/etc/passwd")
    for path in (command.store, stored.parent, link, f"{stored.parent}/../../../log"):
        status, text = send(command.address, f"gradio_api/file={quote(str(path))}")
        assert status >= 400 and SECRET not in text and stored.name not in text
    assert _is_refused(*ask(command.address, {"image": file_data(str(link)), "regions": []}))


@pytest.mark.parametrize(
    "image",
    [
        file_data("/etc/passwd"),
        file_data("../../../../etc/passwd"),
        file_data(str(EXAMPLE_PICTURE)),
        file_data("file:///etc/passwd"),
        file_data("http://127.0.0.1:22/a.png"),
        file_data("https://example.com/a.png"),
        file_data("//example.com/a.png"),
        file_data("", url="https://example.com/a.png"),
        file_data(None, url="file:///etc/passwd"),
        {"path": "/etc/passwd"},
        file_data(["/etc/passwd"]),
        "/etc/passwd",
        None,
        7,
    ],
)
def test_picker_opens_no_other_path_and_no_address(command: Command, image: Any) -> None:
    assert _is_refused(*ask(command.address, {"image": image, "regions": []}))
    assert command.tried == []


def test_address_beside_an_upload_is_not_fetched(command: Command) -> None:
    image = file_data(upload(command.address), url="https://example.com/a.png")
    assert "Done." in ask(command.address, {"image": image, "regions": []})[1]
    assert command.tried == []


def test_points_open_no_other_path(command: Command) -> None:
    status, config = send(command.address, "config")
    (picker,) = (it["id"] for it in json.loads(config)["components"] if it["props"].get("server_fns"))
    for path in ("/etc/passwd", str(EXAMPLE_PICTURE), "https://example.com/a.png"):
        call = {"session_hash": "s", "component_id": picker, "fn_name": "segment"}
        call["data"] = [{"path": path, "points": [[9, 9]], "labels": [1]}]  # type: ignore[assignment]
        status, text = send(
            command.address, "gradio_api/component_server", json.dumps(call).encode(), Content_Type="application/json"
        )
        assert "candidates" not in text and (status >= 400 or "error" in text)
    assert command.tried == []


@pytest.mark.parametrize(
    "name", ["../../../evil.png", "/etc/evil.png", "..\\\\..\\\\evil.png", "a\0b.png", "evil.html", "evil.svg"]
)
def test_upload_stays_in_the_store_whatever_its_name(command: Command, name: str) -> None:
    path = Path(upload(command.address, name, b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"))
    assert path.resolve().is_relative_to(command.store.resolve()) and path.is_file()
    with urllib.request.urlopen(f"{command.address}gradio_api/file={quote(str(path))}", timeout=30) as answer:
        kind = answer.headers["content-type"]
        # Nothing that a browser would run as a page of this site.
        assert kind == "image/png" or answer.headers["content-disposition"].startswith("attachment")


@pytest.mark.parametrize(
    ("value", "settings", "message"),
    [
        ({"regions": [{"size": [9, 9], "counts": [0, 81]}]}, (16, 0, 0), "9"),
        ({"regions": [{"size": [256, 256], "counts": [65536]}]}, (16, 0, 0), "empty"),
        ({"regions": [{"size": [256, 256], "counts": [65535]}]}, (16, 0, 0), "65535"),
        ({"regions": [{"size": [256, 256], "counts": [-5, 65541]}]}, (16, 0, 0), "in runs of -5"),
        ({"regions": [{"size": [2**40, 2**40], "counts": "0"}]}, (16, 0, 0), ""),
        ({"regions": [{"size": [256, 256], "counts": [0, 65536]}] * 10_000}, (16, 0, 0), "at most 32"),
        ({"regions": []}, "NaN, 0, 0", "The longest answer is nan"),
        ({"regions": []}, "16, NaN, 0", "The temperature is nan"),
        ({"regions": []}, "16, 0, NaN", ""),
        ({"regions": []}, "16, 0, null", "The seed is empty"),
        ({"regions": []}, "16, Infinity, 0", "greater than"),
        ({"regions": []}, "1e9, 0, 0", "greater than"),
        ({"regions": []}, "16, -1, 0", ""),
        ({"regions": []}, '"x", 0, 0', ""),
        ({"regions": 7}, (16, 0, 0), ""),
    ],
)
def test_hostile_request_gets_an_error_and_the_next_user_is_served(
    command: Command, value: dict[str, Any], settings: Any, message: str
) -> None:
    status, text = ask(command.address, {"image": file_data(upload(command.address)), **value}, settings=settings)
    assert _is_refused(status, text) and message in text and "Traceback" not in text
    assert _is_served(command)


def test_versions_of_another_length_are_left_out(command: Command) -> None:
    rle = encode_rle(Image.new("L", (256, 256), 255))
    for versions in ([], [1, 2], [-(10**30)]):
        value = {"image": file_data(upload(command.address)), "regions": [rle], "versions": versions}
        assert "Done." in ask(command.address, value)[1]


def test_request_of_more_than_20_mb_is_refused(command: Command) -> None:
    body = b'{"data": ["' + b"x" * 20_000_001 + b'"]}'
    status, text = send(command.address, "gradio_api/queue/join", body, Content_Type="application/json")
    assert status == 413 and "20000000" in text
    assert _is_served(command)


def test_upload_of_more_than_50_mb_is_refused(command: Command) -> None:
    body = b'--xyz\r\nContent-Disposition: form-data; name="files"; filename="p.png"\r\n\r\n' + b"x" * 50_000_001
    status, _ = send(
        command.address,
        "gradio_api/upload",
        body + b"\r\n--xyz--\r\n",
        Content_Type="multipart/form-data; boundary=xyz",
    )
    assert status == 413
    assert _is_served(command)
