"""Item images from hosts of every kind: what is an image is kept, everything else is listed with its reason."""

import io
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
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
from recbole_bbqrec.preparation import download, image_download
from recbole_bbqrec.preparation.image_download import (
    HEADER,
    Failure,
    ImageReport,
    fetch_images,
    read_failures,
    write_failures,
)
from recbole_bbqrec.preparation.images import file_stem, token_of

QUICK = {"WORKERS": 4, "PER_HOST": 2, "HOST_PAUSE": 0.0, "GIVE_UP": 50, "ATTEMPTS": 3, "PAUSE": 0.01, "TIMEOUT": 0.5}


@pytest.fixture(autouse=True)
def constants(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set constants of the module, now those of quick tests."""

    def change(**values: float) -> None:
        for name, value in values.items():
            monkeypatch.setattr(image_download, name, value)

    change(**QUICK)
    return change


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of images of a data set, with nothing in it."""
    place = tmp_path / "set" / "images"
    place.mkdir(parents=True)
    return place


def list_items(site: Loopback, dataset: Path, paths: Mapping[str, str]) -> None:
    """Write the .item file of a data set with addresses; those that begin with a slash lie on `site`."""
    rows = [f"{token}\t{site.url(path) if path.startswith('/') else path}" for token, path in paths.items()]
    dataset.mkdir(parents=True, exist_ok=True)
    (dataset / f"{dataset.name}.item").write_text("\n".join(["item_id:token\timage_url:token", *rows]) + "\n")


def get(site: Loopback, folder: Path, paths: Mapping[str, str]) -> ImageReport:
    list_items(site, folder.parent, paths)
    return fetch_images(folder.parent, folder, progress=False)


def reasons(report: ImageReport) -> dict[str, int]:
    return dict(Counter(failure.reason for failure in report.failures.values()))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".fetch.lock"}


def failures(folder: Path) -> dict[str, tuple[bool, str]]:
    return {token: failure[1:] for token, failure in read_failures(folder / "failures.tsv").items()}


def test_images_get_the_ending_of_their_type_and_a_second_run_fetches_nothing(site: Loopback, tmp_path: Path) -> None:
    wanted = {"A": "/a.jpg", "x/../B": "/b.jpg", ".": "/c"}
    folder = tmp_path / "new" / "images"
    assert get(site, folder, wanted) == ImageReport(3, 0, {})
    assert files(folder) == {"A.jpg": JPEG, "x%2F..%2FB.png": PNG, "%2E.webp": WEBP}
    assert get(site, folder, wanted) == ImageReport(3, 3, {})
    assert len(site.requests) == 3 and not (folder / "failures.tsv").exists()


def test_images_that_are_there_are_kept_whoever_put_them_there(site: Loopback, folder: Path) -> None:
    (folder / "A.jpeg").write_bytes(b"mine")
    (folder / ".B.tmp").write_bytes(b"left by a killed run")
    assert get(site, folder, {"A": "/a.jpg", "B": "/b.jpg"}) == ImageReport(2, 1, {})
    assert files(folder) == {"A.jpeg": b"mine", "B.png": PNG}
    assert [request.path for request in site.requests] == ["/b.jpg"]


def test_images_that_are_there_are_not_fetched_whatever_their_name(site: Loopback, folder: Path) -> None:
    for name in ("a:b.jpg", "c%2Fd.png", "60%.jpg"):
        (folder / name).write_bytes(b"x")
    assert get(site, folder, dict.fromkeys(("a:b", "c/d", "60%"), "/a.jpg")) == ImageReport(3, 3, {})
    assert not site.requests


def test_whatever_is_no_image_is_listed_and_never_fatal(
    site: Loopback, folder: Path, constants: Callable[..., None]
) -> None:
    constants(MAX_BYTES=1 << 20)
    big = b"\xff\xd8\xff" + bytes(1 << 20)
    contents = {
        "bomb": png_header(60000, 60000), "huge": png_header(9000, 9000), "cut": JPEG[:-40],
        "page": b"<html>gone</html>", "empty": b"", "gif": picture("gif"), "riff": b"RIFF\0\0\0\0WEBPnothing",
    }  # fmt: skip
    site.files |= {f"/{name}": File(content) for name, content in contents.items()}
    site.files |= {"/big": File(big), "/endless": File(big, framing="chunked")}
    paths = {name: f"/{name}" for name in [*contents, "big", "endless", "none"]} | {"good": "/a.jpg"}
    paths |= {"ftp": "ftp://x/a.jpg", "local": "file:///etc/passwd", "odd": "http://[x/", "no": "http:///a"}
    paths |= {"t" * 241: "/a.jpg", "": "/a.jpg", "nothing": "http://127.0.0.1:1/a.jpg", "bare": "x"}
    report = get(site, folder, {**paths, "blank": " "})
    assert files(folder).keys() == {"good.jpg", "failures.tsv"}
    found = failures(folder)
    assert (report.wanted, report.kept, len(report.failures)) == (len(paths), 0, len(paths) - 1) and len(found) == 18
    expected = {
        "bomb": "DecompressionBomb", "huge": "more than 64000000", "cut": "truncated", "page": "neither JPEG",
        "empty": "neither JPEG", "gif": "neither JPEG", "riff": "Error", "big": "more than 1 MiB",
        "endless": "more than 1 MiB", "none": "status 404", "ftp": "address cannot be used",
        "local": "address cannot be used", "odd": "address cannot be used", "no": "address cannot be used",
        "bare": "address cannot be used", "t" * 241: "1 to 240 bytes", "": "1 to 240 bytes", "nothing": "no connection",
    }  # fmt: skip
    for name, reason in expected.items():
        transient, said = found[name]
        assert reason in said and str(folder) not in said, name
        assert transient == (name == "nothing"), name
    assert reasons(report)["neither JPEG, PNG nor WEBP"] == 3
    shown = str(report).split("\n")
    assert shown[0] == ("images: 19 wanted, 0 there before, 1 fetched, 18 failed, 1 of them may come on another try")
    assert "failed: 3 neither JPEG, PNG nor WEBP" in shown and shown[1:] == sorted(shown[1:], key=lambda x: x[10:])


def test_only_failures_that_may_pass_are_tried_again(site: Loopback, folder: Path) -> None:
    paths = {"gone": "/gone", "busy": "/busy", "cut": "/cut"}
    site.faults["/busy"] = [Fault(503)] * 3
    site.files["/cut"] = File(JPEG)
    site.faults["/cut"] = [Fault(after=10)] * 3
    get(site, folder, paths)
    expected = {"gone": (False, "status 404"), "busy": (True, "status 503"), "cut": (True, failures(folder)["cut"][1])}
    assert failures(folder) == expected and "broke off" in expected["cut"][1]
    assert len(site.requests) == 7
    site.files |= {"/busy": File(PNG), "/gone": File(PNG), "/other": File(WEBP)}
    report = get(site, folder, paths)
    assert report == ImageReport(3, 0, {"gone": Failure(site.url("/gone"), False, "status 404")})
    assert site.count("/gone") == 1 and len(site.requests) == 9
    assert get(site, folder, paths | {"gone": "/other"}) == ImageReport(3, 2, {})
    assert files(folder) == {"busy.png": PNG, "cut.jpg": JPEG, "gone.webp": WEBP}


def test_an_image_that_someone_adds_ends_its_failure(site: Loopback, folder: Path) -> None:
    get(site, folder, {"gone": "/gone", "lost": "/lost"})
    (folder / "gone.png").write_bytes(PNG)
    assert get(site, folder, {"gone": "/gone"}) == ImageReport(1, 1, {})
    assert files(folder) == {"gone.png": PNG}


@pytest.mark.parametrize("then", ["cut", "hang", "trickle"])
def test_bad_connections_are_tried_again(site: Loopback, folder: Path, then: str) -> None:
    site.faults["/a.jpg"] = [Fault(500), Fault(after=len(JPEG) // 2, then=then)]
    assert get(site, folder, {"A": "/a.jpg"}) == ImageReport(1, 0, {})
    assert files(folder) == {"A.jpg": JPEG} and len(site.requests) == 3


def test_a_host_sees_few_requests_at_a_time_with_pauses(
    site: Loopback, folder: Path, constants: Callable[..., None]
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

    constants(_content=counting, WORKERS=8, HOST_PAUSE=0.05)
    assert not get(site, folder, {str(at): "/a.jpg" for at in range(12)}).failures
    assert max(counts) == 2
    times = sorted(request.at for request in site.requests)
    assert len(times) == 12 and times[-1] - times[0] >= 11 * 0.05 - 0.03


def test_a_busy_host_holds_up_no_other(site: Loopback, folder: Path, constants: Callable[..., None]) -> None:
    constants(PER_HOST=1, ATTEMPTS=1, TIMEOUT=0.6)
    site.faults["/slow"] = [Fault(after=0, then="hang") for _ in range(2)]
    site.files["/slow"] = File(JPEG)
    with Loopback() as other:
        other.files["/b"] = File(PNG)
        report = get(
            site, folder, {f"s{at}": "/slow" for at in range(2)} | {f"q{at}": other.url("/b") for at in "1234"}
        )
        assert reasons(report) == {"no answer within 0.6 s": 2} and len(files(folder)) == 5
        assert max(request.at for request in other.requests) < site.requests[1].at


def test_a_host_may_ask_for_time(
    site: Loopback, folder: Path, constants: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_WAIT", 0.5)
    constants(PER_HOST=1)
    site.faults["/a.jpg"] = [Fault(429, headers={"Retry-After": "9"})]
    assert not get(site, folder, {"A": "/a.jpg", "B": "/b.jpg"}).failures
    first, *others = sorted(request.at for request in site.requests)
    assert len(others) == 2 and 0.45 < min(others) - first < 5


def test_a_host_that_does_not_answer_is_left_alone_until_the_next_run(
    site: Loopback, folder: Path, constants: Callable[..., None]
) -> None:
    constants(WORKERS=1, PER_HOST=1, GIVE_UP=3, ATTEMPTS=1)
    paths = {f"{at:02d}": f"/{at}" for at in range(10)}
    for path in paths.values():
        site.files[path] = File(JPEG)
        site.faults[path] = [Fault(503)]
    report = get(site, folder, paths)
    assert reasons(report) == {"not asked for, its host does not answer": 7, "status 503": 3}
    assert report.passing == 10 and len(site.requests) == 3
    again = get(site, folder, paths)
    assert reasons(again) == {"not asked for, its host does not answer": 4, "status 503": 3}
    assert (again.passing, len(files(folder)), len(site.requests)) == (7, 4, 9)


def test_a_host_that_is_not_found_holds_up_no_other(site: Loopback, folder: Path) -> None:
    report = get(site, folder, {"A": "http://no-such-host.invalid/a.jpg", "B": "/a.jpg"})
    assert [failure.transient for failure in report.failures.values()] == [True]
    assert "its host is not found" in report.failures["A"].reason


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_every_token_is_a_plain_file_name_and_comes_back(token: str) -> None:
    stem = file_stem(token)
    assert token_of(stem) == token
    assert stem not in (".", "..") and not stem.startswith(".")
    assert not set(stem) & set('/\\:*?"<>|\0\t\n\r')


def test_plain_tokens_stay_as_they_are() -> None:
    for token in ("B00005N7P0", "item 12", "Kühlschrank", "a.b", "1+1=2&x"):
        assert file_stem(token) == token


def test_the_list_of_failures_comes_back_and_survives_damage(site: Loopback, folder: Path) -> None:
    path = folder / "failures.tsv"
    wanted = {"z": Failure('ftp://x\t"\n\u2028/', False, 'no "x"'), "a": Failure("http://x/y", True, "status 503")}
    write_failures(path, wanted)
    assert read_failures(path) == wanted
    text = path.read_text(encoding="utf-8")
    assert text.startswith("\t".join(HEADER) + "\na\thttp://x/y\tyes\tstatus 503\n")
    header = "\t".join(HEADER).encode()
    for damage in (b"", b"\xff\xfe", header + b"\nhalf\ta", b"something else\n1\t2\tno\t4\n", header + b'\n"\0\t'):
        path.write_bytes(damage)
        assert read_failures(path) == {}
        assert not get(site, folder, {"A": "/a.jpg"}).failures


def test_threads_leave_warnings_and_modes_alone(site: Loopback, folder: Path) -> None:
    before = list(warnings.filters)
    assert not get(site, folder, {str(at): "/a.jpg" for at in range(40)}).failures
    assert warnings.filters == before
    plain = folder / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in folder.glob("*.jpg")} == {plain.stat().st_mode}


def test_a_folder_that_cannot_be_written_is_an_error_of_its_own(
    site: Loopback, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: found a file, expected a folder"):
        get(site, tmp_path / "file", {"A": "/a.jpg"})
    list_items(site, folder.parent, {"A": "/a.jpg"})
    with pytest.raises(InputError, match=r"file.*cannot be read or written"):
        fetch_images(folder.parent, tmp_path / "file" / "images", progress=False)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_download.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        get(site, folder, {"A": "/a.jpg", "B": "/b.jpg"})
    assert files(folder) == {}


def test_another_items_file_is_never_replaced(site: Loopback, folder: Path, constants: Callable[..., None]) -> None:
    (folder / "A.jpg").write_bytes(b"theirs")
    # As on a file system that takes a1 for A1: the list does not show the name, the file is there all the same.
    constants(images_by_token=lambda folder: {})
    report = get(site, folder, {"A": "/a.jpg"})
    assert reasons(report) == {"another item's image has this file name": 1}
    assert files(folder)["A.jpg"] == b"theirs"


def test_an_interruption_ends_the_run_and_keeps_what_came(
    site: Loopback, folder: Path, constants: Callable[..., None]
) -> None:
    def interrupted(lanes: list) -> Iterator[None]:
        while not (folder / "0.jpg").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt
        yield

    constants(as_completed=interrupted, WORKERS=2, PER_HOST=1, HOST_PAUSE=0.2)
    paths = {"gone": "ftp://x/"} | {str(at): "/a.jpg" for at in range(50)}
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        get(site, folder, paths)
    assert len(site.requests) < 5 and failures(folder) == {
        "gone": (False, "its address cannot be used (InvalidSchema)")
    }
    assert threading.active_count() < before + 5, "the workers and those of the server have ended"


DYING = """
import os, signal, sys
from pathlib import Path
from recbole_bbqrec.preparation import image_download

image_download.WORKERS = image_download.PER_HOST = 1

def deadly(work, after):
    done = []
    def wrapped(*given, **named):
        done.append(1)
        if len(done) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*given, **named)
    return wrapped

for case in sys.argv[1:]:
    name, _, after = Path(case).name.partition("-")
    if not (child := os.fork()):  # no thread has been started yet
        place = os if name == "replace" else image_download
        setattr(place, name, deadly(getattr(place, name), int(after)))
        image_download.fetch_images(Path(case), progress=False)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, case
"""


def test_killed_at_any_point_the_folder_ends_the_same(site: Loopback, tmp_path: Path) -> None:
    for at in range(12):
        site.files[f"/{at}"] = File(picture("jpeg", at) if at % 4 else b"no image")
    paths = {str(at): f"/{at}" for at in range(12)}
    get(site, tmp_path / "calm" / "images", paths)
    calm = files(tmp_path / "calm" / "images")
    # Before the first image is decoded, a later one, before it gets its name, before the list is written.
    cases = [tmp_path / name for name in ("decode-1", "decode-5", "replace-4", "write_failures-1")]
    for case in cases:
        list_items(site, case, paths)
    assert subprocess.run([sys.executable, "-c", DYING, *map(str, cases)]).returncode == 0
    for case, kept in zip(cases, (0, 4, 3, 9), strict=True):
        part = case / ".images.part"
        found = {name: content for name, content in files(part).items() if not name.endswith(".tmp")}
        assert found.items() <= calm.items() and len(found) == kept and not (case / "images").exists()
        site.requests.clear()
        assert get(site, case / "images", paths).kept == kept
        assert files(case / "images") == calm and not part.exists()
        assert len(site.requests) == 12 - kept, "what has come is not asked for again"
