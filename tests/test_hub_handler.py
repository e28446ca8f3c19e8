"""handler.py of a pushed checkpoint, called as the toolkit of Inference Endpoints calls it."""

import base64
import importlib.util
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE_PICTURE, NOT_INSTALLED
from fresh import OURS
from PIL import Image

from finecaption_hf import EMBEDDED_CHECKPOINT, encode_mask
from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.hub.pushing import HANDLER, HANDLER_NEEDS

pytestmark = pytest.mark.hub

REGIONS = [{"box_xyxy": [100, 149, 160, 209]}, {"polygon": [[178, 25], [249, 25], [249, 96], [178, 96]]}]
QUESTIONS = ["color", "Which shape?"]


@pytest.fixture(scope="module")
def handler() -> Any:
    """As the toolkit does it: the module from its file, the class with the folder of the repository."""
    spec = importlib.util.spec_from_loader("handler", None)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(HANDLER.read_text(), "handler.py", "exec"), module.__dict__)
    return module.EndpointHandler(path=str(EMBEDDED_CHECKPOINT))


@pytest.fixture(scope="module")
def expected(embedded: Any) -> list[dict[str, Any]]:
    return ask(FineCaptionDescriber(*embedded), EXAMPLE_PICTURE, REGIONS, QUESTIONS)


def encoded(picture: Image.Image | Path = EXAMPLE_PICTURE) -> str:
    if isinstance(picture, Path):
        return base64.b64encode(picture.read_bytes()).decode()
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("prefix", ["", "data:image/png;base64,"])
def test_request_gets_the_records_of_the_pipeline(handler: Any, expected: Any, prefix: str) -> None:
    request = {"inputs": {"image": prefix + encoded(), "regions": REGIONS, "questions": QUESTIONS}}
    answer = handler(json.loads(json.dumps(request)))
    assert answer == expected
    json.dumps(answer)


def test_parameters_and_a_mask_arrive(handler: Any, embedded: Any) -> None:
    mask = Image.new("L", (256, 256))
    mask.paste(255, (100, 149, 160, 209))
    blob = encode_mask(mask)
    size = Image.open(EXAMPLE_PICTURE).size
    assert size == mask.size
    request = {"image": encoded(), "regions": [blob], "questions": "color"}
    (record,) = handler({"inputs": request, "parameters": {"max_new_tokens": 1, "log_probs": True}})
    assert record["area"] == 3600 and len(record["log_probs"]["Color"]) == 1


def test_picture_alone_is_described_as_a_whole(handler: Any) -> None:
    """A body of type image/png arrives as a picture of PIL."""
    (record,) = handler({"inputs": Image.open(EXAMPLE_PICTURE)})
    assert record["box_xyxy"] == [0, 0, 256, 256] and record["answers"]["region"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": encoded(), "mask": [0, 0, 9, 9]}, "inputs holds 'mask'. Give image, and regions"),
        ({"image": encoded(), "regions": {"box_xyxy": [0, 0, 9, 9]}}, "regions is a dict. Give a list"),
        ({"image": "no picture"}, "no base64 of a picture file"),
        ({"regions": []}, "There is no picture"),
        ("/etc/passwd", "no base64 of a picture file"),
        (None, "There is no picture"),
    ],
)
def test_what_cannot_be_meant_is_an_error(handler: Any, inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        handler({"inputs": inputs})


def test_it_works_where_this_package_is_not_installed(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "repository")
    shutil.copy(HANDLER, tmp_path / "repository" / "handler.py")
    script = NOT_INSTALLED + (
        "sys.path.insert(0, sys.argv[1])\n"
        "from handler import EndpointHandler\n"
        "import json\n"
        "print(json.dumps(EndpointHandler(sys.argv[1])({'inputs': json.load(open(sys.argv[2]))})))\n"
    )
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"image": encoded(), "regions": REGIONS[:1], "questions": ["color"]}))
    done = OURS.run(script, tmp_path / "repository", request, work=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])[0]["answers"] == {"Color": "blue"}


def test_it_is_pushed_on_request_and_stays(hub: Any, client: Any) -> None:
    client.push(EMBEDDED_CHECKPOINT, "me/endpoint", "--handler")
    files = hub.model("me/endpoint").at("main").files
    assert files["handler.py"] == HANDLER.read_bytes()
    assert files["requirements.txt"].decode() == HANDLER_NEEDS
    client.push(EMBEDDED_CHECKPOINT, "me/endpoint")
    assert "handler.py" in hub.model("me/endpoint").at("main").files
    client.push(EMBEDDED_CHECKPOINT, "me/plain")
    assert "handler.py" not in hub.model("me/plain").at("main").files
