"""Kill at random moments, run again, compare: the result must be byte-identical to that of an undisturbed run.

Three jobs on synthetic data: preparing a public data set (download from a server on loopback, build), fetching images,
and encoding them with a small vision model, which keeps parts five times a second here instead of every ten seconds.
Each trial starts a job in a process of its own, sends SIGKILL at a moment drawn between the start of the work and its
usual end, runs it again to its end, and compares every file.

    python benchmarks/kills.py                 # 50 trials, about 10 minutes
    python benchmarks/kills.py --trials=6      # a first try
"""

import argparse
import gzip
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

N_USERS, N_REVIEWS, N_ITEMS, N_IMAGES = 6000, 60_000, 2000, 300

PREPARE = """
from recbole_bbqrec.preparation.public import PublicSet, prepare_public
public = PublicSet.from_description("Set", given["description"])
start()
if not (folder / "Set").exists():
    prepare_public(public, folder, progress=False)
"""
IMAGES = """
from recbole_bbqrec.preparation import image_download
image_download.WORKERS, image_download.HOST_PAUSE = 4, 0.005
start()
image_download.fetch_images(Path(given["set"]), folder / "images", progress=False)
"""
ENCODING = """
import shutil
from recbole_bbqrec.data.features import build_item_features
from recbole_bbqrec.preparation import encoders
import transformers, torch
torch.set_num_threads(1)
encoders.SECONDS_PER_PART = 0.2
if not (folder / "Set").exists():
    shutil.copytree(given["set"], folder / "Set.new")
    (folder / "Set.new").rename(folder / "Set")
config = {
    "data_path": folder / "Set", "dataset": "Set", "device": "cpu", "image_folder": "images",
    "image_encoder": given["model"], "encode_batch_size": 4,
}
for kind in (transformers.AutoModel, transformers.AutoImageProcessor):
    kind.from_pretrained(given["model"])  # imports what this model needs, which takes longer than to encode with it
start()
build_item_features(config, given["tokens"], folder / "cache")
"""
FRAME = """
import json, sys
from pathlib import Path
given, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
def start():
    print("start", flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=2020)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    from preparation.loopback import Loopback

    with tempfile.TemporaryDirectory() as temporary, Loopback() as site:
        jobs = [make(Path(temporary), site) for make in (prepare_job, image_job, encoding_job)]
        calm = [undisturbed(*job) for job in jobs]
        found: list[list[dict[str, Any]]] = [[] for _ in jobs]
        for trial in tqdm(range(arguments.trials), desc="trials"):
            which = trial % len(jobs)
            found[which].append(disturbed(*jobs[which], *calm[which], trial, chance))
    names = ("prepare", "images", "encoding")
    rows = [
        [name, len(trials), sum(t["killed"] for t in trials), sum(t["begun"] for t in trials), f"{seconds:.2f}",
         sum(not t["same"] for t in trials)]
        for name, trials, (_, seconds) in zip(names, found, calm, strict=True)
    ]  # fmt: skip
    header = ["job", "trials", "killed at work", "left files behind", "s undisturbed", "results that differ"]
    print(tabulate(rows, header, tablefmt="github"))
    if any(row[-1] for row in rows):
        sys.exit("a result differs from that of the undisturbed run")


Job = tuple[str, Path, Path]  # program, its input, folder for its results


def write_job(folder: Path, name: str, program: str, given: dict[str, Any]) -> Job:
    (folder / name).mkdir()
    source = folder / name / "given.json"
    source.write_text(json.dumps(given))
    return FRAME + program, source, folder / name


def prepare_job(folder: Path, site: Any) -> Job:
    from preparation.loopback import File

    chance = random.Random(0)
    reviews = [
        {"reviewerID": f"u{chance.randrange(N_USERS)}", "asin": f"i{chance.randrange(N_ITEMS)}", "overall": 5.0,
         "unixReviewTime": chance.randrange(10**6), "reviewText": "so " * chance.randrange(40)}
        for _ in range(N_REVIEWS)
    ]  # fmt: skip
    items = [
        {"asin": f"i{at}", "title": f"Lamp {at} &amp; more", "description": "it is " * 40} for at in range(N_ITEMS)
    ]
    for name, rows, write in (("r.gz", reviews, json.dumps), ("m.gz", items, repr)):
        content = gzip.compress("".join(write(row) + "\n" for row in rows).encode())
        site.files[f"/{name}"] = File(content, etag=f'"{name}"')
    urls = [site.url("/{name}")]
    description = {
        "reader": "amazon",
        "variant": "2014",
        "user_core": 5,
        "item_core": 5,
        "files": {"reviews": {"name": "r.gz", "urls": urls}, "items": {"name": "m.gz", "urls": urls}},
    }
    return write_job(folder, "prepare", PREPARE, {"description": description})


def image_job(folder: Path, site: Any) -> Job:
    from preparation.loopback import File

    for at in range(N_IMAGES):
        site.files[f"/{at}.jpg"] = File(picture(at) if at % 10 else b"no image")
    (folder / "Web").mkdir()
    rows = [f"{at}\t{site.url(f'/{at}.jpg')}\n" for at in range(N_IMAGES)]
    (folder / "Web" / "Web.item").write_text("".join(["item_id:token\timage_url:token\n", *rows]))
    return write_job(folder, "images", IMAGES, {"set": str(folder / "Web")})


def encoding_job(folder: Path, site: Any) -> Job:
    from preparation.tiny_models import vit

    tokens = [f"i{at}" for at in range(N_IMAGES)]
    images = folder / "set" / "images"
    images.mkdir(parents=True)
    for at, token in enumerate(tokens):
        (images / f"{token}.jpg").write_bytes(picture(at) if at % 10 else b"no image")
    (folder / "set" / "Set.item").write_text("item_id:token\n" + "".join(f"{token}\n" for token in tokens))
    given = {"set": str(folder / "set"), "model": str(vit(folder / "model")), "tokens": tokens}
    return write_job(folder, "encoding", ENCODING, given)


def picture(seed: int) -> bytes:
    from PIL import Image

    chance, file = random.Random(seed), io.BytesIO()
    Image.frombytes("RGB", (96, 96), chance.randbytes(96 * 96 * 3)).save(file, "JPEG")
    return file.getvalue()


def started(program: str, given: Path, folder: Path) -> subprocess.Popen[str]:
    """Start a job and return once its work begins: imports are over."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(given), str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if process.stdout.readline() != "start\n":
        raise RuntimeError(process.communicate()[1])
    return process


def ended(process: subprocess.Popen[str]) -> None:
    error = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(error)


def content(folder: Path) -> dict[str, bytes]:
    """All files but locks, by path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def undisturbed(program: str, given: Path, place: Path) -> tuple[dict[str, bytes], float]:
    """Run a job to its end; return its files and the seconds of its work."""
    process = started(program, given, place / "calm")
    begun = time.perf_counter()
    ended(process)
    return content(place / "calm"), time.perf_counter() - begun


def disturbed(
    program: str, given: Path, place: Path, calm: dict[str, bytes], seconds: float, trial: int, chance: random.Random
) -> dict[str, bool]:
    """Kill a job once and run it again; tell whether it was killed at work, had files by then, and ended the same."""
    folder = place / f"trial-{trial}"
    process = started(program, given, folder)
    time.sleep(chance.random() * seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = process.returncode == -signal.SIGKILL
    begun = bool(content(folder / "cache" if "cache" in program else folder))
    ended(started(program, given, folder))
    found = content(folder)
    if different := sorted(name for name in found.keys() | calm.keys() if found.get(name) != calm.get(name)):
        print(f"{folder.parent.name}, trial {trial}: {', '.join(different)}", file=sys.stderr)
    return {"killed": killed, "begun": begun, "same": not different}


if __name__ == "__main__":
    main()
