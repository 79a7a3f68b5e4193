"""Files over a connection that fails in every way: whole and right in the end, or an error that says what to do."""

import hashlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from preparation.loopback import Fault, File, Loopback

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.preparation import download
from recbole_bbqrec.preparation.download import Source, fetch, folder_lock

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ATTEMPTS": 3, "PAUSE": 0.01, "TIMEOUT": 0.5}.items():
        monkeypatch.setattr(download, name, value)


@pytest.fixture
def site() -> Iterator[Loopback]:
    with Loopback() as running:
        running.files["/a.gz"] = File(CONTENT, etag='"one"')
        yield running


def get(site: Loopback, folder: Path, *paths: str, size: int | None = None, sha256: str | None = None) -> Path:
    urls = tuple(site.url(path) for path in paths or ("/a.gz",))
    return fetch([Source("a.gz", urls, size, sha256)], folder, progress=False)[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".fetch.lock"}


def ranges(site: Loopback) -> list[str]:
    return [request.range for request in site.requests]


WHOLE = {"a.gz", "a.gz.sha256"}


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_second_run_fetches_nothing(site: Loopback, tmp_path: Path, framing: str) -> None:
    site.files["/a.gz"].framing = framing
    folder = tmp_path / "new" / "raw"
    assert get(site, folder) == folder / "a.gz"
    assert (folder / "a.gz").read_bytes() == CONTENT
    assert (folder / "a.gz.sha256").read_text() == f"{SHA}  a.gz\n"
    assert names(folder) == WHOLE
    get(site, folder, size=len(CONTENT), sha256=SHA.upper())
    assert len(site.requests) == 1


def test_a_broken_connection_is_continued_where_it_broke(site: Loopback, tmp_path: Path) -> None:
    site.faults["/a.gz"] = [Fault(after=100_000), Fault(after=50_000)]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert ranges(site) == ["", "bytes=100000-", "bytes=150000-"]
    assert [request.if_range for request in site.requests] == ["", '"one"', '"one"']


def test_the_time_of_change_serves_where_the_tag_is_weak(site: Loopback, tmp_path: Path) -> None:
    site.files["/a.gz"] = File(CONTENT, etag='W/"one"', modified=DATE)
    site.faults["/a.gz"] = [Fault(after=1000)]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert [(request.range, request.if_range) for request in site.requests] == [("", ""), ("bytes=1000-", DATE)]


def test_without_validator_a_part_is_continued_only_under_a_known_hash(site: Loopback, tmp_path: Path) -> None:
    site.files["/a.gz"] = File(CONTENT)
    site.faults["/a.gz"] = [Fault(after=1000), Fault(after=1000)]
    get(site, tmp_path / "without")
    assert ranges(site) == ["", "", ""]
    site.requests.clear()
    site.faults["/a.gz"] = [Fault(after=1000)]
    assert get(site, tmp_path / "with", sha256=SHA).read_bytes() == CONTENT
    assert ranges(site) == ["", "bytes=1000-"]


def test_a_server_without_ranges_starts_again(site: Loopback, tmp_path: Path) -> None:
    site.files["/a.gz"].ranges = False
    site.faults["/a.gz"] = [Fault(after=1000)]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert ranges(site) == ["", "bytes=1000-"]


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("new", [OTHER, OTHER[:70_000], OTHER + b"x"], ids=["equal", "shorter", "longer"])
def test_a_file_that_changed_meanwhile_is_never_glued(
    site: Loopback, tmp_path: Path, new: bytes, heeds_if_range: bool
) -> None:
    site.faults["/a.gz"] = [Fault(after=100_000), Fault(404)]
    with pytest.raises(InputError, match="status 404"):
        get(site, tmp_path)
    assert (tmp_path / "a.gz.part").read_bytes() == CONTENT[:100_000] and not (tmp_path / "a.gz").exists()
    site.files["/a.gz"] = File(new, etag='"two"', heeds_if_range=heeds_if_range)
    assert get(site, tmp_path).read_bytes() == new
    assert names(tmp_path) == WHOLE


def test_a_change_that_no_validator_shows_is_found_by_the_hash(site: Loopback, tmp_path: Path) -> None:
    site.files["/a.gz"] = File(OTHER, etag='"same"')
    site.faults["/a.gz"] = [Fault(after=1000), Fault(404)]
    with pytest.raises(InputError, match="status 404"):
        get(site, tmp_path, sha256=SHA)
    site.files["/a.gz"] = File(CONTENT, etag='"same"')
    site.requests.clear()
    assert get(site, tmp_path, sha256=SHA).read_bytes() == CONTENT
    assert ranges(site) == ["bytes=1000-", ""]


@pytest.mark.parametrize("note", ["", "[]", "{}", "\xff", None], ids=["empty", "list", "blank", "bytes", "none"])
def test_a_part_of_unknown_origin_is_not_used(site: Loopback, tmp_path: Path, note: str | None) -> None:
    (tmp_path / "a.gz.part").write_bytes(OTHER[:5000])
    if note is not None:
        (tmp_path / "a.gz.part.json").write_bytes(note.encode("latin-1"))
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert ranges(site) == [""] and names(tmp_path) == WHOLE


@pytest.mark.parametrize("statuses", [(500, 429), (502, 408), (504, 425)])
def test_what_may_pass_is_tried_again(site: Loopback, tmp_path: Path, statuses: tuple[int, int]) -> None:
    site.faults["/a.gz"] = [Fault(status) for status in statuses]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 3


@pytest.mark.parametrize("ask", ["9", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_the_server_may_ask_for_time_within_bounds(
    site: Loopback, tmp_path: Path, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "MAX_WAIT", 0.5)
    site.faults["/a.gz"] = [Fault(503, headers={"Retry-After": "x"}), Fault(503, headers={"Retry-After": ask})]
    assert get(site, tmp_path).read_bytes() == CONTENT
    first, second, third = (request.at for request in site.requests)
    assert second - first < 5 and 0.45 < third - second < 5


def test_a_final_answer_is_not_asked_for_twice_and_the_error_says_what_to_do(site: Loopback, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        get(site, tmp_path, "/gone.gz")
    for word in ("a.gz", site.url("/gone.gz"), "status 404", "--raw_dir", "by hand"):
        assert word in str(caught.value)
    assert len(site.requests) == 1 and names(tmp_path) == set()


def test_patience_ends_with_the_number_of_tries(site: Loopback, tmp_path: Path) -> None:
    site.faults["/a.gz"] = [Fault(500)] * 9
    with pytest.raises(InputError, match="status 500, after 3 tries"):
        get(site, tmp_path)
    assert len(site.requests) == 3


def test_progress_renews_patience(site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PROGRESS", 10_000)
    site.faults["/a.gz"] = [Fault(after=20_000)] * 9
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 10


@pytest.mark.parametrize(
    ("then", "reason"), [("hang", "no answer within 0.5 s"), ("trickle", "fewer than 16384 bytes")]
)
def test_a_connection_that_falls_silent_or_trickles_is_left(
    site: Loopback, tmp_path: Path, then: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    site.faults["/a.gz"] = [Fault(after=100_000, then=then), Fault(after=1, then=then)]
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert reason in caplog.text
    assert len(site.requests) == 3 and site.requests[1].range >= "bytes=100000-"


def test_mirrors_are_asked_in_order_and_a_part_stays_with_its_own(site: Loopback, tmp_path: Path) -> None:
    site.files["/b.gz"] = File(CONTENT, etag='"other"')
    site.faults["/b.gz"] = [Fault(after=1000), Fault(404)]
    with pytest.raises(InputError, match=r"gone\.gz: status 404; .*b\.gz: status 404, after 2 tries"):
        get(site, tmp_path, "/gone.gz", "/b.gz")
    site.requests.clear()
    assert get(site, tmp_path, "/gone.gz", "/b.gz").read_bytes() == CONTENT
    assert [(request.path, request.range) for request in site.requests] == [("/b.gz", "bytes=1000-")]


@pytest.mark.parametrize(
    ("wrong", "known", "reason"),
    [
        (File(CONTENT[:-1]), {"size": 300_000}, "found 299999 bytes, expected 300000"),
        (File(CONTENT + b"x", framing="chunked"), {"size": 300_000}, "found 300001 bytes, expected 300000"),
        (File(CONTENT[:-1], framing="close"), {"size": 300_000}, "broke off, after 3 tries"),
        (File(CONTENT, framing="close"), {}, "does not say how long"),
        (File(OTHER), {"sha256": SHA}, f"found sha256 {hashlib.sha256(OTHER).hexdigest()}, expected {SHA}"),
        (File(b""), {}, "found 0 bytes"),
        (File(b"<html>log in</html>", headers={"Content-Type": "text/html; charset=utf-8"}), {}, "web page"),
    ],
    ids=["short", "long", "cut", "endless", "hash", "empty", "page"],
)
def test_what_is_not_the_file_is_never_kept(
    site: Loopback, tmp_path: Path, wrong: File, known: dict, reason: str
) -> None:
    site.files["/wrong.gz"] = wrong
    with pytest.raises(InputError, match=reason):
        get(site, tmp_path / "one", "/wrong.gz", **known)
    assert not (tmp_path / "one" / "a.gz").exists()
    assert get(site, tmp_path / "two", "/wrong.gz", "/a.gz", **known).read_bytes() == CONTENT


def test_a_known_size_or_hash_tells_the_end_where_the_server_does_not(site: Loopback, tmp_path: Path) -> None:
    site.files["/a.gz"].framing = "close"
    assert get(site, tmp_path / "size", size=300_000).read_bytes() == CONTENT
    assert get(site, tmp_path / "hash", sha256=SHA).read_bytes() == CONTENT


def test_gz_named_as_an_encoding_stays_as_it_is_and_other_encodings_are_refused(site: Loopback, tmp_path: Path) -> None:
    site.files["/a.gz"].headers = {"Content-Encoding": "gzip"}
    assert get(site, tmp_path).read_bytes() == CONTENT
    with pytest.raises(InputError, match="packed as gzip"):
        fetch([Source("a.zip", (site.url("/a.gz"),))], tmp_path, progress=False)


def test_redirects_are_followed_and_never_for_ever(site: Loopback, tmp_path: Path) -> None:
    site.faults["/moved.gz"] = [Fault(302, headers={"Location": "/a.gz"})]
    site.faults["/a.gz"] = [Fault(after=1000)]
    site.faults["/moved.gz"] += site.faults["/moved.gz"]
    assert get(site, tmp_path, "/moved.gz").read_bytes() == CONTENT
    assert [(request.path, request.range) for request in site.requests][2:] == [
        ("/moved.gz", "bytes=1000-"),
        ("/a.gz", "bytes=1000-"),
    ]
    site.faults["/loop.gz"] = [Fault(302, headers={"Location": "/loop.gz"})] * 40
    with pytest.raises(InputError, match="TooManyRedirects"):
        get(site, tmp_path / "loop", "/loop.gz")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/a.gz", "no connection, or it broke off, after 3 tries"),
        ("http://no-such-host.invalid/a.gz", r"its host is not found, is there .*\?\)"),  # tried once
        ("ftp://127.0.0.1/a.gz", "its address cannot be used"),
        ("http://", "its address cannot be used"),
        ("http://.bad/\u2028", "its address cannot be used"),
    ],
)
def test_addresses_that_lead_nowhere(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        fetch([Source("a.gz", (url,))], tmp_path, progress=False)


def test_files_put_there_by_hand_are_taken_recorded_and_checked(site: Loopback, tmp_path: Path) -> None:
    (tmp_path / "a.gz").write_bytes(OTHER)
    assert get(site, tmp_path).read_bytes() == OTHER
    assert (tmp_path / "a.gz.sha256").read_text() == f"{hashlib.sha256(OTHER).hexdigest()}  a.gz\n"
    with pytest.raises(InputError, match=f"found sha256 .*, expected {SHA}; delete it"):
        get(site, tmp_path, sha256=SHA)
    with pytest.raises(InputError, match=r"a\.gz: found 300000 bytes, expected 5; delete it"):
        get(site, tmp_path, size=5)
    (tmp_path / "a.gz").write_bytes(OTHER[:-1] + b"\0")
    with pytest.raises(
        InputError,
        match=r"found sha256 .*delete it and a\.gz\.sha256 .*right file there, a\.gz\.sha256 alone",
    ):
        get(site, tmp_path)
    (tmp_path / "a.gz").write_bytes(b"")
    with pytest.raises(InputError, match="found 0 bytes, expected some"):
        get(site, tmp_path)
    assert site.requests == []


def test_files_that_lie_where_nothing_can_be_written_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(download, "replacing", refused)
    (tmp_path / "a.gz").write_bytes(CONTENT)
    assert fetch([Source("a.gz", ())], tmp_path, progress=False) == [tmp_path / "a.gz"]
    assert names(tmp_path) == {"a.gz"}


def test_only_what_is_missing_is_fetched(site: Loopback, tmp_path: Path) -> None:
    (tmp_path / "b.gz").write_bytes(OTHER)
    sources = [Source("b.gz", ()), Source("a.gz", (site.url("/a.gz"),))]
    assert fetch(sources, tmp_path, progress=False) == [tmp_path / "b.gz", tmp_path / "a.gz"]
    assert site.count("/a.gz") == len(site.requests) == 1


def test_sources_without_an_address_ask_for_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no address is known.*--raw_dir"):
        fetch([Source("a.gz", ())], tmp_path)
    form = Source("b.gz", (), page="https://example.org (its form)")
    with pytest.raises(
        InputError, match=r"; fetch it by hand from https://example\.org \(its form\) and name its folder"
    ):
        fetch([form], tmp_path, progress=False)


def test_a_full_disk_is_said(site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", full)
        with pytest.raises(InputError, match=r"No space left on device.*make room.*--raw_dir="):
            get(site, tmp_path)
    (tmp_path / "a.gz.part").unlink()
    (tmp_path / "a.gz.part").mkdir()
    with pytest.raises(InputError, match=r"a\.gz\.part: cannot be read or written"):
        get(site, tmp_path)


def test_what_will_be_fetched_is_announced(
    site: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sizes = {"known": (300_000, "0.3 MB"), "asked": (None, "0.3 MB"), "unsaid": (None, "size not known")}
    for name, (size, said) in sizes.items():
        site.files["/a.gz"].framing = "chunked" if name == "unsaid" else "length"
        urls = (site.url("/nowhere"), site.url("/a.gz"))
        fetch([Source("a.gz", urls, size)], tmp_path / name)
        assert f"fetching a.gz ({said}) into {tmp_path / name}" in caplog.text
    assert "a.gz" in capsys.readouterr().err


def test_processes_wait_for_each_other(site: Loopback, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with folder_lock(tmp_path):
        other = threading.Thread(target=get, args=(site, tmp_path))
        other.start()
        deadline = time.monotonic() + 10
        while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert site.requests == []
        (tmp_path / "a.gz").write_bytes(CONTENT)
    other.join(10)
    assert site.requests == [] and (tmp_path / "a.gz.sha256").exists()


FETCH = """
import sys
from pathlib import Path
from recbole_bbqrec.preparation.download import Source, fetch
fetch([Source("a.gz", (sys.argv[1],))], Path(sys.argv[2]), progress=False)
"""


@pytest.mark.parametrize("after", [1, 250_000])
def test_killed_in_the_middle_it_goes_on_to_the_very_same_bytes(site: Loopback, tmp_path: Path, after: int) -> None:
    site.faults["/a.gz"] = [Fault(after=after, then="hang")]
    child = subprocess.Popen([sys.executable, "-c", FETCH, site.url("/a.gz"), str(tmp_path)])
    part, note, deadline = tmp_path / "a.gz.part", tmp_path / "a.gz.part.json", time.monotonic() + 60
    while not (note.is_file() and part.stat().st_size >= after // 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert names(tmp_path) == {part.name, note.name}
    kept = part.stat().st_size
    assert after // 2 <= kept <= after and CONTENT.startswith(part.read_bytes())
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert ranges(site) == ["", f"bytes={kept}-" if kept else ""]
    assert names(tmp_path) == WHOLE


@pytest.mark.parametrize("point", ["write_json", "replacing"], ids=["at the note", "at the record"])
def test_killed_while_small_files_are_written_nothing_is_left(
    site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    def killed(path: Path, *_: object) -> None:
        (path.parent / f".{path.name}.x1.tmp").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, point, killed)
        with pytest.raises(KeyboardInterrupt):
            get(site, tmp_path)
    assert len(names(tmp_path)) > 1
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert names(tmp_path) == WHOLE


def test_killed_before_the_file_got_its_name_nothing_is_asked_for(
    site: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(download._File, "_accept", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(site, tmp_path)
    assert not (tmp_path / "a.gz").exists()
    assert get(site, tmp_path).read_bytes() == CONTENT
    assert len(site.requests) == 1 and names(tmp_path) == WHOLE
