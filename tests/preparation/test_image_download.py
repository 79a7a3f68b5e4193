"""Item images from hosts of every kind: what is an image is kept, everything else is listed with its reason."""

import io
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from preparation.loopback import Fault, File, Loopback
from preparation.test_images import png_header

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import image_download, transfer
from recbole_bbqrec.preparation.image_download import ImageReport, Politeness, fetch_images
from recbole_bbqrec.preparation.image_failures import HEADER, Failure, read_failures
from recbole_bbqrec.preparation.images import file_stem, token_of
from recbole_bbqrec.preparation.transfer import Patience

POLITE = Politeness(workers=4, per_host=2, pause=0.0, give_up=50)
QUICK = Patience(attempts=3, pause=0.01, timeout=0.5)


def picture(kind: str, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


JPEG, PNG, WEBP = picture("jpeg"), picture("png"), picture("webp")


@pytest.fixture
def site() -> Iterator[Loopback]:
    with Loopback() as running:
        running.files |= {"/a.jpg": File(JPEG), "/b.jpg": File(PNG), "/c": File(WEBP, framing="chunked")}
        yield running


def get(
    site: Loopback, folder: Path, paths: dict[str, str], polite: Politeness = POLITE, patience: Patience = QUICK
) -> ImageReport:
    urls = {token: site.url(path) if path.startswith("/") else path for token, path in paths.items()}
    return fetch_images(urls, folder, progress=False, politeness=polite, patience=patience)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".fetch.lock"}


def failures(folder: Path) -> dict[str, tuple[bool, str]]:
    return {token: failure[1:] for token, failure in read_failures(folder / "failures.tsv").items()}


def test_images_get_the_ending_of_their_type_and_a_second_run_fetches_nothing(site: Loopback, tmp_path: Path) -> None:
    wanted = {"A": "/a.jpg", "x/../B": "/b.jpg", ".": "/c"}
    folder = tmp_path / "new" / "images"
    assert get(site, folder, wanted) == ImageReport(3, 0, 3, 0, 0, {})
    assert files(folder) == {"A.jpg": JPEG, "x%2F..%2FB.png": PNG, "%2E.webp": WEBP}
    assert get(site, folder, wanted) == ImageReport(3, 3, 0, 0, 0, {})
    assert len(site.requests) == 3 and not (folder / "failures.tsv").exists()


def test_images_that_are_there_are_kept_whoever_put_them_there(site: Loopback, tmp_path: Path) -> None:
    (tmp_path / "A.jpeg").write_bytes(b"mine")
    (tmp_path / ".B.tmp").write_bytes(b"left by a killed run")
    assert get(site, tmp_path, {"A": "/a.jpg", "B": "/b.jpg"}) == ImageReport(2, 1, 1, 0, 0, {})
    assert files(tmp_path) == {"A.jpeg": b"mine", "B.png": PNG}
    assert [request.path for request in site.requests] == ["/b.jpg"]


def test_whatever_is_no_image_is_listed_and_never_fatal(
    site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_download, "MAX_BYTES", 1 << 20)
    big = b"\xff\xd8\xff" + bytes(1 << 20)
    contents = {
        "bomb": png_header(60000, 60000), "huge": png_header(9000, 9000), "cut": JPEG[:-40],
        "page": b"<html>gone</html>", "empty": b"", "gif": picture("gif"), "riff": b"RIFF\0\0\0\0WEBPnothing",
    }  # fmt: skip
    site.files |= {f"/{name}": File(content) for name, content in contents.items()}
    site.files |= {"/big": File(big), "/endless": File(big, framing="chunked")}
    paths = {name: f"/{name}" for name in [*contents, "big", "endless", "none"]} | {"good": "/a.jpg"}
    paths |= {
        "blank": " ",
        "ftp": "ftp://x/a.jpg",
        "local": "file:///etc/passwd",
        "odd": "http://[x/",
        "no": "http:///a",
    }
    paths |= {"t" * 241: "/a.jpg", "": "/a.jpg", "\ud800": "/a.jpg", "nothing": "http://127.0.0.1:1/a.jpg"}
    report = get(site, tmp_path, paths)
    assert files(tmp_path).keys() == {"good.jpg", "failures.tsv"}
    found = failures(tmp_path)
    assert (report.wanted, report.fetched, report.failed) == (len(paths), 1, len(paths) - 1) and len(found) == 19
    expected = {
        "bomb": "DecompressionBomb", "huge": "more than 64000000", "cut": "truncated", "page": "neither JPEG",
        "empty": "neither JPEG", "gif": "neither JPEG", "riff": "Error", "big": "more than 1 MiB",
        "endless": "more than 1 MiB", "none": "status 404", "blank": "no address", "ftp": "no http(s)",
        "local": "no http(s)", "odd": "may hold", "no": "no http(s)", "t" * 241: "241 bytes", "": "0 bytes",
        "nothing": "no connection", "?": "neither token nor address",
    }  # fmt: skip
    for name, reason in expected.items():
        transient, said = found[name]
        assert reason in said and str(tmp_path) not in said, name
        assert transient == (name == "nothing"), name
    assert report.reasons["neither JPEG, PNG nor WEBP"] == 3 and sum(report.reasons.values()) == report.failed


def test_only_failures_that_may_pass_are_tried_again(site: Loopback, tmp_path: Path) -> None:
    paths = {"gone": "/gone", "busy": "/busy", "cut": "/cut"}
    site.faults["/busy"] = [Fault(503)] * 3
    site.files["/cut"] = File(JPEG)
    site.faults["/cut"] = [Fault(after=10)] * 3
    get(site, tmp_path, paths)
    expected = {
        "gone": (False, "status 404"),
        "busy": (True, "status 503"),
        "cut": (True, failures(tmp_path)["cut"][1]),
    }
    assert failures(tmp_path) == expected and "broke off" in expected["cut"][1]
    assert len(site.requests) == 7
    site.files |= {"/busy": File(PNG), "/gone": File(PNG), "/other": File(WEBP)}
    assert get(site, tmp_path, paths) == ImageReport(3, 0, 2, 1, 0, {"status 404": 1})
    assert site.count("/gone") == 1 and len(site.requests) == 9
    assert get(site, tmp_path, paths | {"gone": "/other"}) == ImageReport(3, 2, 1, 0, 0, {})
    assert files(tmp_path) == {"busy.png": PNG, "cut.jpg": JPEG, "gone.webp": WEBP}


def test_an_image_that_someone_adds_ends_its_failure(site: Loopback, tmp_path: Path) -> None:
    get(site, tmp_path, {"gone": "/gone", "lost": "/lost"})
    (tmp_path / "gone.png").write_bytes(PNG)
    assert get(site, tmp_path, {"gone": "/gone"}) == ImageReport(1, 1, 0, 0, 0, {})
    assert files(tmp_path) == {"gone.png": PNG}


@pytest.mark.parametrize("then", ["cut", "hang", "trickle"])
def test_bad_connections_are_tried_again(site: Loopback, tmp_path: Path, then: str) -> None:
    site.faults["/a.jpg"] = [Fault(500), Fault(after=len(JPEG) // 2, then=then)]
    assert get(site, tmp_path, {"A": "/a.jpg"}) == ImageReport(1, 0, 1, 0, 0, {})
    assert files(tmp_path) == {"A.jpg": JPEG} and len(site.requests) == 3


def test_an_image_has_to_be_whole_in_time(site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MIN_BYTES", 1)
    site.faults["/a.jpg"] = [Fault(after=0, then="trickle")]
    assert get(site, tmp_path, {"A": "/a.jpg"}, patience=Patience(1, 0, 0.3)).failed == 1
    assert failures(tmp_path) == {"A": (True, "not whole within 0.9 s")}


def test_a_host_sees_few_requests_at_a_time_with_pauses(
    site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_now, counts, real = [], [], image_download._content

    def counting(*given: Any) -> bytes:
        open_now.append(1)
        counts.append(len(open_now))
        time.sleep(0.12)  # longer than the pause, so that as many as may be are open at a time
        try:
            return real(*given)
        finally:
            open_now.pop()

    monkeypatch.setattr(image_download, "_content", counting)
    paths = {str(at): "/a.jpg" for at in range(12)}
    polite = Politeness(workers=8, per_host=2, pause=0.05, give_up=50)
    assert get(site, tmp_path, paths, polite).fetched == 12
    assert max(counts) == 2
    times = sorted(request.at for request in site.requests)
    assert len(times) == 12 and times[-1] - times[0] >= 11 * 0.05 - 0.03


def test_a_busy_host_holds_up_no_other(site: Loopback, tmp_path: Path) -> None:
    site.faults["/slow"] = [Fault(after=0, then="hang") for _ in range(2)]
    site.files["/slow"] = File(JPEG)
    with Loopback() as other:
        other.files["/b"] = File(PNG)
        urls = {f"s{at}": site.url("/slow") for at in range(2)} | {f"q{at}": other.url("/b") for at in range(4)}
        one_try = Patience(attempts=1, timeout=0.6)
        report = fetch_images(urls, tmp_path, progress=False, politeness=replace(POLITE, per_host=1), patience=one_try)
        assert (report.fetched, report.reasons) == (4, {"no answer within 0.6 s": 2})
        assert max(request.at for request in other.requests) < site.requests[1].at


def test_a_host_may_ask_for_time(site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "MAX_WAIT", 0.5)
    site.faults["/a.jpg"] = [Fault(429, headers={"Retry-After": "9"})]
    polite = replace(POLITE, per_host=1)
    assert get(site, tmp_path, {"A": "/a.jpg", "B": "/b.jpg"}, polite).fetched == 2
    first, *others = sorted(request.at for request in site.requests)
    assert len(others) == 2 and 0.45 < min(others) - first < 5


def test_a_host_that_does_not_answer_is_left_alone_until_the_next_run(site: Loopback, tmp_path: Path) -> None:
    paths = {f"{at:02d}": f"/{at}" for at in range(10)}
    for path in paths.values():
        site.files[path] = File(JPEG)
        site.faults[path] = [Fault(503)]
    polite, once = Politeness(workers=1, per_host=1, pause=0, give_up=3), Patience(1, 0, 1)
    assert get(site, tmp_path, paths, polite, once) == ImageReport(
        10, 0, 0, 10, 10, {"not asked for, its host does not answer": 7, "status 503": 3}
    )
    assert len(site.requests) == 3
    again = get(site, tmp_path, paths, polite, once)
    assert again == ImageReport(10, 0, 3, 7, 7, {"not asked for, its host does not answer": 4, "status 503": 3})
    assert len(site.requests) == 9


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_token_is_a_plain_file_name_and_comes_back(token: str) -> None:
    stem = file_stem(token)
    assert token_of(stem) == token
    assert stem not in (".", "..") and not stem.startswith(".")
    assert not set(stem) & set('/\\:*?"<>|\0\t\n\r')


def test_plain_tokens_stay_as_they_are() -> None:
    for token in ("B00005N7P0", "item 12", "Kühlschrank", "a.b", "1+1=2&x"):
        assert file_stem(token) == token


def test_the_list_of_failures_is_one_line_each_and_survives_damage(site: Loopback, tmp_path: Path) -> None:
    get(site, tmp_path, {"a\tb\nc": "/x\ty", "z": "ftp://x\n\u2028/"})
    text = (tmp_path / "failures.tsv").read_text(encoding="utf-8")
    assert text.split("\n")[0] == HEADER and len(text.splitlines()) == 3
    assert read_failures(tmp_path / "failures.tsv")["z"] == Failure("ftp://x??/", False, "no http(s) address")
    assert read_failures(tmp_path / "failures.tsv").keys() == {"a%09b%0Ac", "z"}
    for damage in (b"", b"\xff\xfe", HEADER.encode() + b"\nhalf\ta", b"something else\n1\t2\tno\t4\n"):
        (tmp_path / "failures.tsv").write_bytes(damage)
        assert read_failures(tmp_path / "failures.tsv") == {}
        assert get(site, tmp_path, {"A": "/a.jpg"}).failed == 0


def test_threads_leave_warnings_and_modes_alone(site: Loopback, tmp_path: Path) -> None:
    before = list(warnings.filters)
    assert get(site, tmp_path, {str(at): "/a.jpg" for at in range(40)}).fetched == 40
    assert warnings.filters == before
    plain = tmp_path / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in tmp_path.glob("*.jpg")} == {plain.stat().st_mode}


def test_a_folder_that_cannot_be_written_is_an_error_of_its_own(
    site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file.*cannot be read or written"):
        get(site, tmp_path / "file", {"A": "/a.jpg"})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_download.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        get(site, tmp_path / "images", {"A": "/a.jpg", "B": "/b.jpg"})
    assert files(tmp_path / "images") == {}


def test_another_items_file_is_never_replaced(site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "A.jpg").write_bytes(b"theirs")
    # As on a file system that takes a1 for A1: the list does not show the name, the file is there all the same.
    monkeypatch.setattr(image_download, "images_by_token", lambda folder: {})
    report = get(site, tmp_path, {"A": "/a.jpg"})
    assert report.reasons == {"another item's image has this file name": 1}
    assert files(tmp_path)["A.jpg"] == b"theirs"


def test_an_interruption_ends_the_run_and_keeps_what_came(
    site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(lanes: list) -> Iterator[None]:
        while not (tmp_path / "0.jpg").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(image_download, "as_completed", interrupted)
    slow = Politeness(workers=1, per_host=1, pause=0.2, give_up=50)
    paths = {str(at): "/a.jpg" for at in range(50)} | {"ftp": "ftp://x/"}
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        get(site, tmp_path, paths, slow)
    assert len(site.requests) < 5 and failures(tmp_path) == {"ftp": (False, "no http(s) address")}
    assert threading.active_count() < before + 5, "the workers and those of the server have ended"


FETCH = """
import json, sys
from pathlib import Path
from recbole_bbqrec.preparation.image_download import Politeness, fetch_images
fetch_images(json.loads(sys.argv[1]), Path(sys.argv[2]), False, Politeness(workers=1, per_host=1, pause=0))
"""


def test_killed_in_the_middle_it_goes_on_to_the_very_same_folder(site: Loopback, tmp_path: Path) -> None:
    for at in range(12):
        site.files[f"/{at}"] = File(picture("jpeg", at) if at % 4 else b"no image")
    paths = {str(at): f"/{at}" for at in range(12)}
    get(site, tmp_path / "calm", paths)
    site.requests.clear()
    site.faults["/7"] = [Fault(after=100, then="hang")]
    urls = json.dumps({token: site.url(path) for token, path in paths.items()})
    child = subprocess.Popen([sys.executable, "-c", FETCH, urls, str(tmp_path / "killed")])
    deadline = time.monotonic() + 60
    while not site.count("/7") and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    calm = files(tmp_path / "calm")
    before = files(tmp_path / "killed")
    assert before.keys() == {"1.jpg", "2.jpg", "3.jpg", "5.jpg", "6.jpg"}
    assert all(calm[name] == content for name, content in before.items())
    assert get(site, tmp_path / "killed", paths).kept == 5
    assert files(tmp_path / "killed") == calm and len(calm) == 10
    assert site.count("/1") == 1 and site.count("/7") == 2


DYING = (
    """
import os, signal, sys
from recbole_bbqrec.preparation import image_download

when, after, done = sys.argv[3], int(sys.argv[4]), []

def deadly(name, work):
    def wrapped(*given, **named):
        done.append(name)
        if name == when and done.count(name) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*given, **named)
    return wrapped

image_download.decode = deadly("decode", image_download.decode)
image_download.write_failures = deadly("list", image_download.write_failures)
image_download.SAVE_EVERY = 1
os.replace = deadly("name", os.replace)
"""
    + FETCH
)


@pytest.mark.parametrize(
    ("when", "after"),
    [("decode", 1), ("decode", 5), ("name", 4), ("list", 2), ("list", 4)],
    ids=["first image", "a later one", "before its name", "within the list of failures", "before the last list"],
)
def test_killed_at_any_point_the_folder_ends_the_same(site: Loopback, tmp_path: Path, when: str, after: int) -> None:
    for at in range(12):
        site.files[f"/{at}"] = File(picture("jpeg", at) if at % 4 else b"no image")
    get(site, tmp_path / "calm", {str(at): f"/{at}" for at in range(12)})
    urls = json.dumps({str(at): site.url(f"/{at}") for at in range(12)})
    given = [sys.executable, "-c", DYING, urls, str(tmp_path / "killed"), when]
    assert subprocess.run([*given, str(after)]).returncode == -signal.SIGKILL
    assert subprocess.run([*given, "0"]).returncode == 0
    assert files(tmp_path / "killed") == files(tmp_path / "calm")
    assert not [path for path in (tmp_path / "killed").iterdir() if path.suffix == ".tmp"]
