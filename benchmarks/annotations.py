"""How fast a COCO file of 100,000 annotations is indexed, and in how much memory, beside pycocotools' COCO class.

    python benchmarks/annotations.py [--json FILE] [--annotations N] [--rounds N]

A file like COCO's own is made: polygons, boxes and areas of N annotations, in random order, of N / 7 images. Each
contestant opens it in a process of its own, in turns:

- `pycocotools`: `COCO(path)`, its constructor.
- `index`: `open_annotations(path)`, which finds every annotation and its image.
- `regions`: `open_regions(path)`, as commands do: it tells the format, takes a digest of the content and parses every
  annotation once, so that errors are known before a model is loaded.

Seconds of processor time are medians over the turns, without imports; each works on one core. Memory is the peak beyond
what the process holds after its imports, which are of different size. Before timing, all have to find the same
annotations for each image.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CONTESTANTS = {
    "pycocotools": (
        "from pycocotools.coco import COCO",
        "opened = COCO(path)",
        "{image['file_name']: [a['id'] for a in opened.imgToAnns[number]] for number, image in opened.imgs.items()}",
    ),
    "index": (
        "from finecaption_hf.data.annotations import ReadOptions, open_annotations\nfrom pathlib import Path",
        "opened = open_annotations(Path(path), ReadOptions(format='coco'))",
        "{row['image']: [region['id'] for region in row['regions']] for _, row in opened.scan()}",
    ),
    "regions": (
        "from finecaption_hf.data import open_regions",
        "opened = open_regions(path)",
        "{item.name: [region.carried['id'] for region in item.regions] for item in opened}",
    ),
}
# The peak is read from /proc: getrusage would begin with what the parent held when it started this process.
CHILD = """
import contextlib, hashlib, io, json, sys, time
{imports}
path, compare = sys.argv[1], sys.argv[2] == "compare"

def status(field):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))

before = status("VmRSS")
start = time.process_time()
with contextlib.redirect_stdout(io.StringIO()):
    {call}
found = {{"seconds": time.process_time() - start, "memory": status("VmHWM") - before, "after_imports": before}}
if compare:
    owned = sorted(item for item in {found}.items() if item[1])
    found["digest"] = hashlib.sha256(json.dumps(owned).encode()).hexdigest()
print(json.dumps(found))
"""


def write_file(path: Path, annotations: int) -> None:
    """Images, annotations and categories in the form and proportions of COCO's own files."""
    draw = random.Random(0)
    images = [
        {
            "license": 1 + number % 8,
            "file_name": f"{number:012}.jpg",
            "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.jpg",
            "height": 480,
            "width": 640,
            "date_captured": "2013-11-14 17:02:52",
            "id": 3 * number + 9,
        }
        for number in range(max(annotations // 7, 1))
    ]
    found = []
    for number in range(annotations):
        polygon = [round(draw.uniform(0, 640), 2) for _ in range(2 * draw.randint(6, 41))]
        left, top = min(polygon[::2]), min(polygon[1::2])
        box = [left, top, round(max(polygon[::2]) - left, 2), round(max(polygon[1::2]) - top, 2)]
        found.append(
            {
                "segmentation": [polygon],
                "area": round(draw.uniform(10, 90_000), 4),
                "iscrowd": 0,
                "image_id": draw.choice(images)["id"],
                "bbox": box,
                "category_id": draw.randint(1, 90),
                "id": 900_000 + number,
            }
        )
    categories = [{"supercategory": "thing", "id": number, "name": f"thing {number}"} for number in range(1, 91)]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": found, "categories": categories}))


def opened(contestant: str, path: Path, what: str) -> dict[str, Any]:
    imports, call, found = CONTESTANTS[contestant]
    code = CHILD.format(imports=imports, call=call, found=found)
    done = subprocess.run([sys.executable, "-c", code, str(path), what], capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(path: Path, rounds: int) -> dict[str, Any]:
    digests = {name: opened(name, path, "compare")["digest"] for name in CONTESTANTS}
    if len(set(digests.values())) != 1:
        raise SystemExit(f"The contestants find different annotations: {digests}")
    runs = [{name: opened(name, path, "time") for name in CONTESTANTS} for _ in range(rounds)]
    result: dict[str, Any] = {"file_bytes": path.stat().st_size}
    for value in ("seconds", "memory", "after_imports"):
        result[value] = {name: statistics.median(run[name][value] for run in runs) for name in CONTESTANTS}
    for name in ("index", "regions"):
        result[f"{name}_speedup"] = result["seconds"]["pycocotools"] / result["seconds"][name]
        result[f"{name}_memory_ratio"] = result["memory"][name] / result["memory"]["pycocotools"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--annotations", type=int, default=100_000, help="of the file (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="annotations-benchmark-") as folder:
        path = Path(folder) / "instances.json"
        write_file(path, arguments.annotations)
        result = measure(path, arguments.rounds)
    print(f"{result['file_bytes'] / 1e6:.0f} MB, {arguments.annotations} annotations")
    for name in CONTESTANTS:
        memory = f"{result['memory'][name] / 2**20:.0f} MiB beyond {result['after_imports'][name] / 2**20:.0f}"
        print(f"{name:12} {result['seconds'][name]:.2f} s, {memory}")
    for name in ("index", "regions"):
        print(
            f"{name}_speedup {result[f'{name}_speedup']:.1f}, {name}_memory_ratio {result[f'{name}_memory_ratio']:.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
