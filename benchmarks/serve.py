"""How much more `finecaption serve` answers in the same time than a server that takes one region at a time.

    python benchmarks/serve.py [--pictures N] [--regions N] [--questions N] [--model FOLDER] [--json FILE]

The same questions about the same regions of the same pictures, over HTTP on loopback, from one server in one run:

- `one_by_one_s`: Describe Anything's way: a request per region and question, the next one when the last is answered;
  the towers run for each.
- `clients_s`: those requests, chat completions too, from 64 clients at once; what waits is batched.
- `regions_s`: a request per picture to `/v1/regions`, all at once.

Seconds are those of the processor, of server and clients together, which other work on the machine changes little;
`wall_s` has the others. It is told how many texts are equal. Contestants take turns after a first request; medians of
the rounds count. `ratio` is `one_by_one_s` over `regions_s`, `ratio_clients` over `clients_s`.

Without `--model` it is the random model with the paper's geometry of regions.py (336 and 1,024 px, 1,024 image tokens;
`--tiny` for less), whose answers all have `--new-tokens` tokens.
"""

import argparse
import base64
import io
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import uvicorn
from PIL import Image
from regions import make_model
from training import make_processor

from finecaption_hf.asking import Describer, FineCaptionDescriber, load_describer
from finecaption_hf.prompts_finecaption import ATTRIBUTES
from finecaption_hf.serving.app import build_server
from finecaption_hf.serving.limits import Limits

NAME, CLIENTS, LIMIT_S = "model", 64, 3600
Answers = list[list[list[str]]]
"""Of each picture, region and question."""


class Setting:
    """The server's address, and what is asked."""

    def __init__(self, arguments: argparse.Namespace, port: int) -> None:
        self._client = httpx2.Client(
            base_url=f"http://127.0.0.1:{port}/v1",
            timeout=3600,
            trust_env=False,
            limits=httpx2.Limits(max_connections=CLIENTS),
        )
        rng = np.random.default_rng(0)
        self._pictures = []
        for _ in range(arguments.pictures):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)).save(file, "PNG")
            self._pictures.append(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}")
        corners = rng.integers((0, 0), (250, 150), (arguments.regions, 2)).tolist()
        self._regions = [{"box_xyxy": [x, y, x + 60 + 10 * it, y + 100]} for it, (x, y) in enumerate(corners)]
        self._questions = list(ATTRIBUTES)[: arguments.questions]
        self._decoding = {"max_tokens": arguments.new_tokens}

    def warm_up(self) -> None:
        self._chat(*self._all()[0][0][0])

    def one_by_one(self) -> Answers:
        return [[[self._chat(*it) for it in row] for row in of_picture] for of_picture in self._all()]

    def clients(self) -> Answers:
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [[[pool.submit(self._chat, *it) for it in row] for row in of_picture] for of_picture in self._all()]
            return [[[it.result(timeout=LIMIT_S) for it in row] for row in of_picture] for of_picture in asked]

    def regions(self) -> Answers:
        with ThreadPoolExecutor(CLIENTS) as pool:
            return list(pool.map(self._records, self._pictures))

    def _all(self) -> list[list[list[tuple[str, object, str]]]]:
        return [[[(url, it, text) for text in self._questions] for it in self._regions] for url in self._pictures]

    def _chat(self, url: str, region: object, question: str) -> str:
        picture = {"type": "image_url", "image_url": {"url": url}, "mask": region}
        message = {"role": "user", "content": [picture, {"type": "text", "text": question}]}
        body = {"model": NAME, "messages": [message], **self._decoding}
        answer = self._client.post("/chat/completions", json=body).raise_for_status()
        return str(answer.json()["choices"][0]["message"]["content"])

    def _records(self, url: str) -> list[list[str]]:
        body = {"image": url, "regions": self._regions, "questions": self._questions, **self._decoding}
        answer = self._client.post("/regions", json=body).raise_for_status()
        return [[record["answers"][name] for name in self._questions] for record in answer.json()["records"]]


def start(describer: Describer) -> tuple[uvicorn.Server, int]:
    limits = Limits(requests=10_000, seconds=3600)
    app = build_server(describer, NAME, limits=limits)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", access_log=False))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return server, server.servers[0].sockets[0].getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("pictures", 1), ("regions", 4), ("questions", 16), ("new-tokens", 24), ("rounds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", help="a checkpoint, or 'embedded'; else a random model")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.model is None:
        arguments.size, arguments.device, arguments.dtype, arguments.compile = "small", "cpu", "float32", False
        processor = make_processor(arguments.tiny)
        describer: Describer = FineCaptionDescriber(make_model(processor, arguments), processor)
    else:
        describer = load_describer(None if arguments.model == "embedded" else arguments.model)
    server, port = start(describer)
    setting = Setting(arguments, port)
    contestants: dict[str, Callable[[], Answers]] = {
        "regions": setting.regions,
        "clients": setting.clients,
        "one_by_one": setting.one_by_one,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    setting.warm_up()
    texts: dict[str, Answers] = {}
    for number in range(arguments.rounds):
        for name, run in contestants.items():
            print(f"round {number + 1} of {arguments.rounds}: {name}", file=sys.stderr, flush=True)
            begin, begin_wall = time.process_time(), time.perf_counter()
            texts[name] = run()
            seconds[name].append(time.process_time() - begin)
            wall[name].append(time.perf_counter() - begin_wall)
    server.should_exit = True
    flat = {name: [text for picture in it for row in picture for text in row] for name, it in texts.items()}
    figures: dict[str, object] = {f"{name}_s": statistics.median(values) for name, values in seconds.items()}
    median = {name: statistics.median(values) for name, values in seconds.items()}
    figures |= {
        "ratio": median["one_by_one"] / median["regions"],
        "ratio_clients": median["one_by_one"] / median["clients"],
        "wall_s": {name: statistics.median(values) for name, values in wall.items()},
        "answers": len(flat["regions"]),
        "different_texts": len(set(flat["regions"])),
        "equal": {name: sum(map(str.__eq__, flat[name], flat["one_by_one"])) for name in ("regions", "clients")},
    }
    print(json.dumps(figures, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
