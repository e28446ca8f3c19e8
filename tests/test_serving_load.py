"""`finecaption serve` under load: 64 clients on loopback, good, bad, slow and cut requests in turn.

`FINECAPTION_LOAD_SECONDS` says for how long (20 where it is absent).
"""

import json
import os
import random
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image
from served import LIMIT_S, data_url

from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.scenes import render_scene

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("FINECAPTION_LOAD_SECONDS", "20"))
CLIENTS, PICTURES = 64, 6
QUESTIONS = ["region", "color", "shape", "global"]
NAME = "finecaption-tiny"


@contextmanager
def command(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`finecaption serve` as a user starts it, and its port."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with open(folder / "log", "w") as log:
        arguments = [sys.executable, "-m", "finecaption_hf.cli", "serve", "--port", "0"]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert process.stdout is not None
    try:
        told, deadline = "", time.monotonic() + 120
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", told)) is None:
            told += process.stdout.readline() if select.select([process.stdout], [], [], 1)[0] else ""
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
        yield process, int(found[1])
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()


class Load:
    """What clients send, and what they have to get.

    Attributes:
        counts: of requests by kind, each once it was answered as it has to be.
        faults: what was not.
    """

    def __init__(self, describer: FineCaptionDescriber, port: int) -> None:
        self._port = port
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self._pictures: list[str] = []
        self._boxes: list[list[dict[str, Any]]] = []
        self._expected: list[list[dict[str, Any]]] = []
        for number in range(PICTURES):
            picture = Image.fromarray(render_scene(number, size=192).image)
            boxes = [{"box_xyxy": [8 + 20 * it, 12, 90 + 20 * it, 120 + 8 * it]} for it in range(4)]
            self._pictures.append(data_url(picture))
            self._boxes.append(boxes)
            self._expected.append(ask(describer, picture, boxes, QUESTIONS))

    def run(self, seed: int, until: float) -> None:
        chance = random.Random(seed)
        with httpx2.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=180, trust_env=False) as client:
            while time.monotonic() < until:
                kind = chance.choices(
                    ("regions", "lines", "chat", "pieces", "bad", "slow", "cut"), (3, 2, 4, 3, 2, 1, 2)
                )[0]
                try:
                    getattr(self, f"_{kind}")(client, chance)
                    self.counts[kind] += 1
                except Exception as error:  # whatever it is, it is told
                    self.faults.append(f"{kind}: {type(error).__name__} {error}")

    def final(self) -> None:
        """One good request by a client of its own."""
        with httpx2.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=180, trust_env=False) as client:
            self._regions(client, random.Random())

    def _some(self, chance: random.Random) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """A request for regions, and its records."""
        number = chance.randrange(PICTURES)
        chosen = chance.sample(range(4), chance.randint(1, 4))
        asked = chance.sample(QUESTIONS, chance.randint(1, 4))
        names = {"color": "Color", "shape": "Shape"}
        records = [
            {
                **self._expected[number][place],
                "region_index": index,
                "answers": {
                    names.get(it, it): self._expected[number][place]["answers"][names.get(it, it)] for it in asked
                },
            }
            for index, place in enumerate(chosen)
        ]
        regions = [self._boxes[number][place] for place in chosen]
        return {"image": self._pictures[number], "regions": regions, "questions": asked}, records

    def _one(self, chance: random.Random) -> tuple[dict[str, Any], str]:
        """A chat, and its answer."""
        body, records = self._some(chance)
        picture = {"type": "image_url", "image_url": {"url": body["image"]}, "mask": body["regions"][0]}
        content = [picture, {"type": "text", "text": body["questions"][0]}]
        said = next(iter(records[0]["answers"].values()))
        return {"model": NAME, "messages": [{"role": "user", "content": content}]}, said

    def _regions(self, client: httpx2.Client, chance: random.Random) -> None:
        body, records = self._some(chance)
        answer = client.post("/v1/regions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["records"] == records

    def _lines(self, client: httpx2.Client, chance: random.Random) -> None:
        body, records = self._some(chance)
        with client.stream("POST", "/v1/regions", json={**body, "stream": True}) as answer:
            found = []
            for line in answer.iter_lines():
                found.append(json.loads(line))
                time.sleep(chance.choice((0, 0.2)))
        assert sorted(found, key=lambda it: it["region_index"]) == records

    def _chat(self, client: httpx2.Client, chance: random.Random) -> None:
        body, said = self._one(chance)
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == said

    def _pieces(self, client: httpx2.Client, chance: random.Random) -> None:
        body, said = self._one(chance)
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert lines[-1] == "[DONE]"
        pieces = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
        assert "".join(pieces) == said

    def _bad(self, client: httpx2.Client, chance: random.Random) -> None:
        body, _ = self._some(chance)
        wrong: list[tuple[dict[str, Any], int]] = [
            ({**body, "image": "file:///etc/passwd"}, 400),
            ({**body, "image": body["image"][:-100]}, 400),
            ({**body, "questions": []}, 400),
            ({**body, "colour": 1}, 400),
            ({**body, "regions": [None] * 300}, 413),
            ({**body, "model": "gpt"}, 404),
        ]
        sent, status = chance.choice(wrong)
        answer = client.post("/v1/regions", json=sent)
        assert answer.status_code == status and answer.json()["error"]["message"], answer.text
        mixed = client.post("/v1/regions", json={**body, "regions": [*body["regions"], {"polygon": [1, 2]}]}).json()
        assert "error" in mixed["records"][-1] and "answers" in mixed["records"][0]

    def _slow(self, _: httpx2.Client, chance: random.Random) -> None:
        body, records = self._some(chance)
        with self._raw() as connection:
            content = self._request(body)
            for start in range(0, len(content), -(-len(content) // 5)):
                connection.sendall(content[start : start - (-len(content) // 5)])
                time.sleep(0.2)
            found = b""
            while chunk := connection.recv(256):
                found += chunk
                time.sleep(0.02)
        assert json.loads(found.partition(b"\r\n\r\n")[2])["records"] == records

    def _cut(self, _: httpx2.Client, chance: random.Random) -> None:
        body, _ = self._some(chance)
        content = self._request({**body, "stream": chance.random() < 0.5})
        with self._raw() as connection:
            connection.sendall(content[: chance.choice((30, len(content) // 2, len(content)))])
            time.sleep(chance.choice((0, 0.05, 0.5)))

    def _raw(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), timeout=180)

    def _request(self, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        head = f"POST /v1/regions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(content)}\r\n"
        return f"{head}Content-Type: application/json\r\n\r\n".encode() + content


def _counts(port: int) -> tuple[str, dict[str, float]]:
    """All metrics, and those without labels."""
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
    found = re.findall(r"^finecaption_(\w+) ([\d.]+)$", text, re.MULTILINE)
    return text, {name: float(value) for name, value in found}


def _end_while_it_answers(load: Load, process: subprocess.Popen[str], port: int) -> None:
    """SIGTERM once eight requests are there: each gets its answer."""
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            answers = [pool.submit(load.final) for _ in range(8)]
            while not all(answer.done() for answer in answers):
                _, counts = _counts(port)
                if counts["waiting"] + counts["running"] == 8:
                    process.send_signal(signal.SIGTERM)
                    for answer in answers:
                        answer.result(timeout=LIMIT_S)
                    return
    pytest.fail("the eight were never there together")


def test_nothing_is_lost_under_load_and_memory_does_not_grow(embedded: Any, tmp_path: Path) -> None:
    with command(tmp_path) as (process, port):
        load = Load(FineCaptionDescriber(*embedded), port)
        memory: list[int] = []
        until = time.monotonic() + SECONDS
        clients = [threading.Thread(target=load.run, args=(seed, until)) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        while any(client.is_alive() for client in clients):
            memory.append(psutil.Process(process.pid).memory_info().rss)
            time.sleep(0.5)
        text, counts = _counts(port)
        third = len(memory) // 3
        middle, last = statistics.median(memory[third : 2 * third]), statistics.median(memory[2 * third :])
        print(f"\n{dict(load.counts)} in {SECONDS:g} s; {len(load.faults)} faults; {counts}")
        print(
            f"resident memory, medians of the second and the last third: {middle / 2**20:.0f}, {last / 2**20:.0f} MiB"
        )
        assert load.faults == []
        assert counts["waiting"] == counts["running"] == counts["failures_total"] == 0
        assert not re.search(r'status="5\d\d"', text)
        _end_while_it_answers(load, process, port)
        assert process.wait(60) in (0, -signal.SIGTERM)
        assert "Traceback" not in (tmp_path / "log").read_text()
    # Batches of another size, and what torch and the allocator keep for them, take some.
    assert last < 1.1 * middle + 2**25
