"""The pages in a real browser: Debian's Chromium without a window, driven through its chromedriver.

After every test: no request has left the service, and nothing was wrong in the browser's console.
"""

import asyncio
import contextlib
import io
import json
import os
import shutil
import threading
import time
import urllib.request
from importlib import resources
from pathlib import Path

import pytest
import uvicorn
from conftest import write_dataset
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import recbole_bbqrec
from recbole_bbqrec.second_stage import reasons
from recbole_bbqrec.serving.service.app import make_app
from recbole_bbqrec.serving.service.store import Store

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="Debian's chromium and chromium-driver")

SCRIPT = "<script>document.title='taken'</script> lamp"
IMAGE = '"><img src=x onerror="document.title=\'taken\'"> lamp'
LONG = "w" * 120
WIDE = 1280, 810
PHONE = 360, 780
MARGIN = 16  # of the map in its canvas
WATCH = """
    globalThis.told = [];
    const seen = () => [...document.querySelectorAll("#problem p, .cards .title")].slice(0, 2).map((e) => e.innerText);
    new MutationObserver(() => told.push(seen())).observe(document.querySelector("#problem"), { childList: true });
"""
CHIPS = """
    const codesOf = (card) => [...card.querySelectorAll(".code:not(.other)")].map((e) => Number(e.innerText));
    return [...document.querySelectorAll("#recommended li")].map(codesOf);
"""
REAL = os.environ.get("BBQREC_SCREENSHOTS_OF")
"""Folder of a bundle with titles, whose pages are then pictured in docs/images."""
PICTURES = Path(__file__).resolve().parents[3] / "docs" / "images"


class Moody:
    """A service whose next answers to `POST /recommend` are late, by seconds, or a status, as `moods` says."""

    def __init__(self, app):
        self.app, self.moods = app, []

    async def __call__(self, scope, receive, send):
        mood = self.moods.pop(0) if self.moods and scope.get("path") == "/recommend" else 0
        await asyncio.sleep(mood if mood < 100 else 0)
        if mood < 100:
            await self.app(scope, receive, send)
        else:
            headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
            await send({"type": "http.response.start", "status": mood, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error": "the service is busy"}'})


@contextlib.contextmanager
def served(app):
    """Serve an app from a thread; yields its origin."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class Page:
    """What a person does with a page, and sees of it."""

    def __init__(self, browser, origin):
        self.browser, self.origin = browser, origin
        for log in ("browser", "performance"):
            browser.get_log(log)  # of the page before

    def open(self, path):
        self.browser.get("about:blank")  # a change of what follows "#" alone is no new page
        self.browser.get(self.origin + path)

    def until(self, condition):
        """Wait for a condition; returns what it gave."""
        return WebDriverWait(self.browser, 60, 0.02).until(lambda _: condition())

    def run(self, script, *given):
        return self.browser.execute_script(script, *given)

    def texts(self, selector):
        """Texts of the elements that are to be seen, as they are seen."""
        seen = "[...document.querySelectorAll(arguments[0])].filter((e) => e.checkVisibility())"
        return self.run(f"return {seen}.map((e) => e.innerText)", selector)

    def click(self, selector):
        self.until(lambda: self.browser.find_elements(By.CSS_SELECTOR, selector))[0].click()

    def press(self, *keys):
        for key in keys:  # each by itself, for a second SHIFT lets go of the first
            self.browser.switch_to.active_element.send_keys(key)

    def search(self, words):
        """Type into the search field; returns the titles found, whose words all begin one of the title."""
        field = self.browser.find_element(By.ID, "words")
        field.clear()
        field.send_keys(words)
        self.until(lambda: all(words.split()[0] in title.lower() for title in self.texts("#found .title") or [""]))
        return self.texts("#found .title")

    def cards_after(self, count):
        """Titles of the recommendations after a history of so many items."""
        busy = "return document.querySelector('#recommended').ariaBusy"
        self.until(lambda: len(self.texts("#history li")) == count and self.run(busy) == "false")
        return self.texts("#recommended button.title")

    def hover(self, item):
        """Move the pointer onto an item of the map."""
        canvas = self.browser.find_element(By.ID, "map")
        points, away = self.points(), []  # how far it is from the middle of the canvas
        for axis, size, up in (("x", "width", 1), ("y", "height", -1)):
            places = [point[axis] for point in points]
            at = next(point[axis] for point in points if point["item"] == item)
            share = (at - min(places)) / (max(places) - min(places)) - 0.5
            away.append(round(up * share * (canvas.size[size] - 2 * MARGIN)))
        ActionChains(self.browser).move_to_element_with_offset(canvas, *away).perform()
        self.until(lambda: self.texts("#tip strong"))

    def points(self):
        with urllib.request.urlopen(f"{self.origin}/catalogue/map") as answer:
            return json.load(answer)["points"]

    def tokens(self):
        """The history in the address."""
        return [token for token in self.browser.current_url.partition("#history=")[2].split(",") if token]

    def focused(self):
        """Name of what has the focus."""
        return self.run("const e = document.activeElement; return e.ariaLabel ?? e.innerText")

    def resize(self, size, dark=False):
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})

    def errors(self):
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]

    def asked_elsewhere(self):
        """Addresses of requests to others than the service, since it was last asked."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        assert sent
        own = (self.origin, f"blob:{self.origin}", "about:")
        return [asked["request"]["url"] for asked in sent if not asked["request"]["url"].startswith(own)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, untrained):
    """Items in whose titles there is HTML, among others."""
    folder = write_dataset(tmp_path_factory.mktemp("hostile"))
    file = folder / "tiny" / "tiny.item"
    text = file.read_text(encoding="utf-8")
    titles = {"black lamp number 7": SCRIPT, "blue lamp number 6": IMAGE, "green tent number 9": LONG}
    for plain, title in titles.items():
        assert plain in text
        text = text.replace(plain, title)
    file.write_text(text, encoding="utf-8")
    return untrained(folder, "BBQRec")


@pytest.fixture(scope="module")
def moody(bundle, tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "events.sqlite"
    return Moody(make_app(bundle, Store(str(store))))


@pytest.fixture(scope="module")
def origin(moody):
    with served(moody) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, origin, moody):
    page = Page(browser, origin)
    page.resize(WIDE)
    yield page
    moody.moods.clear()
    assert not page.errors()
    assert page.asked_elsewhere() == []


def test_from_a_search_to_recommendations_that_say_why(page, bundle):
    page.open("/")
    assert page.until(lambda: page.texts("#starters button"))
    assert len(page.search("red te")) == 2  # of the tents every fourth is red
    page.click("#found li")
    first = page.cards_after(1)
    item = page.tokens()[0]
    assert first == titles_of(bundle, bundle.recommend([[item]], k=12)[0].items)
    page.click("#recommended li:nth-child(3) button")
    second = page.cards_after(2)
    assert second != first
    assert page.texts("#history .title")[0].startswith(first[2])  # the latest comes first
    asked = bundle.recommend([page.tokens()], k=12, explain=True)[0]
    assert second == titles_of(bundle, asked.items)
    reasons = page.texts("#recommended .why")
    for reason, text, share in zip(asked.reasons, reasons, page.texts("#recommended .share"), strict=True):
        assert share == f"{round(100 * reason.share)} %"
        assert titles_of(bundle, [reason.item])[0] in text if reason.item else text
    codes, by = bundle.semantic_ids().drop(columns="title"), [reason.item for reason in asked.reasons]
    shared = [bundle.shared_codes(item, one) if one else [] for item, one in zip(asked.items, by, strict=True)]
    rows = zip(asked.items, shared, strict=True)
    assert page.run(CHIPS) == [[int(codes.loc[item].iloc[place]) for place in places] for item, places in rows]
    assert any(shared)


def test_the_address_holds_the_history(page):
    page.open("/#history=i01,nowhere,i02,%zz")
    cards = page.cards_after(3)
    assert "nowhere\nnot in the catalogue" in page.texts("#history .title")
    page.browser.refresh()
    assert page.cards_after(3) == cards
    page.click("#recommended li button")
    page.cards_after(4)
    page.browser.back()  # is undo
    assert page.cards_after(3) == cards
    assert page.errors(), "an unknown item is asked for, which the console tells"
    page.click("#clear")
    page.until(lambda: not page.texts("#recommended li"))
    assert page.texts("#start")


def test_the_keyboard_is_enough(page):
    page.open("/")
    page.until(lambda: page.run("return document.activeElement.id") == "words")
    page.press("rope")
    page.until(lambda: page.texts("#found li"))
    page.press(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    chosen = page.texts("#found li[aria-selected=true] .title")
    assert chosen == page.texts("#found .title")[1:2]
    page.press(Keys.ENTER)
    page.cards_after(1)
    assert page.texts("#history .title")[0].startswith(chosen[0])
    page.press("ball")
    page.until(lambda: page.texts("#found li"))
    page.press(Keys.ESCAPE)
    assert not page.texts("#found")
    page.press(Keys.TAB, Keys.TAB)  # over "Clear" to the item of the history
    assert page.focused().startswith("Remove")
    page.press(Keys.TAB)
    first = page.cards_after(1)
    assert page.focused() == first[0]
    page.press(Keys.ENTER)
    page.cards_after(2)
    assert page.focused() == page.texts("#recommended button.title")[0]  # the focus stays at its place
    page.press(Keys.SHIFT + Keys.TAB)
    assert page.focused() == f"Remove {chosen[0]}"
    page.press(Keys.ARROW_UP)
    assert page.focused() == f"Remove {first[0]}"
    page.press(Keys.DELETE)
    assert page.cards_after(1) == first
    assert page.focused() == f"Remove {chosen[0]}"
    page.press(Keys.DELETE)
    page.until(lambda: page.texts("#start"))
    assert page.run("return document.activeElement.id") == "words"


def test_the_skip_link_leaves_the_history_alone(page):
    page.open("/#history=i01")
    page.cards_after(1)
    page.until(lambda: page.run("return document.activeElement.id") == "words")
    page.press(*[Keys.SHIFT + Keys.TAB] * 5)
    assert page.focused() == "Skip to the recommendations"
    page.press(Keys.ENTER)
    assert page.tokens() == ["i01"]
    page.press(Keys.TAB)
    assert page.focused() == page.cards_after(1)[0]


def test_html_in_titles_stays_text(page, bundle):
    page.open("/")
    assert SCRIPT in page.search("script")
    page.click("#found li")
    page.cards_after(1)
    assert IMAGE in page.search("onerror")
    page.click("#found li")
    page.cards_after(2)
    assert [title.split("\n")[0] for title in page.texts("#history .title")] == [IMAGE, SCRIPT]
    assert {SCRIPT, IMAGE} & set(page.texts("#recommended .why cite"))
    page.open("/#history=i00")
    assert {SCRIPT, IMAGE} & set(page.cards_after(1))
    page.open("/map")
    page.until(lambda: page.texts("#codes li"))
    page.hover("i07")
    assert page.texts("#tip strong") == [SCRIPT]
    assert page.browser.title == "Map of the catalogue"
    assert page.run("return document.querySelectorAll('img[src=x], main script').length") == 0


@pytest.mark.parametrize("path", ["/", "/#history=i01,i09,i07", "/map", "/docs"])
def test_a_phone_needs_no_scrolling_sideways(page, path):
    page.resize(PHONE)
    page.open(path)
    page.until(lambda: page.texts("#starters li, #recommended li, #codes li, .docs h2"))
    if path == "/":
        page.search("w")
    assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [PHONE[0], PHONE[0]]
    outside = "e.getBoundingClientRect().right > innerWidth && !e.closest('.scroll, .unseen, .skip')"
    assert page.run(f"return [...document.body.querySelectorAll('*')].filter((e) => {outside}).length") == 0


def test_an_answer_that_is_late_is_dropped(page, moody, bundle):
    page.open("/")
    moody.moods[:] = [0.5]
    page.run("location.hash = 'history=i01'")
    page.until(lambda: not moody.moods)
    page.run("location.hash = 'history=i01,i20'")
    newer = page.cards_after(2)
    time.sleep(0.6)
    assert page.texts("#recommended button.title") == newer
    assert newer == titles_of(bundle, bundle.recommend([["i01", "i20"]], k=12)[0].items)


def test_a_service_that_is_busy_is_asked_again(page, moody):
    page.open("/#history=i01")
    before = page.cards_after(1)
    page.run(WATCH)
    moody.moods[:] = [503]
    page.click("#recommended li button")
    page.until(lambda: page.run("return told.length") and not page.texts("#problem p"))
    assert page.cards_after(2) != before
    # What is there stays until there is something new.
    assert page.run("return told") == [["The service is busy. Trying again in 1 s.", before[0]]]
    assert all("503" in error for error in page.errors())


def test_a_service_that_is_gone_is_told(page):
    page.open("/#history=i01")
    before = page.cards_after(1)
    page.browser.execute_cdp_cmd("Network.enable", {})
    page.browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/recommend"]})
    page.click("#recommended li button")
    assert "cannot be reached" in page.until(lambda: page.texts("#problem p"))[0]
    page.browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    page.click("#problem button")
    page.until(lambda: not page.texts("#problem p"))
    assert page.cards_after(2) != before


@pytest.fixture
def with_images(bundle, tmp_path, monkeypatch, browser):
    """The bundle, every item of which has an image 3 pixels wide."""
    Image.new("RGB", (3, 4)).save(tmp_path / "image.png")
    monkeypatch.setattr(type(bundle), "image_file", lambda self, token: tmp_path / "image.png")
    yield bundle
    browser.get("about:blank")  # images on their way would be missing a moment later


def image_widths(page):
    return page.run("return [...document.querySelectorAll('#history img')].map((image) => image.naturalWidth)")


def test_items_have_their_images(page, with_images):
    page.open("/#history=i01,i02")
    page.cards_after(2)
    page.until(lambda: image_widths(page) == [3, 3])


def test_a_key_is_asked_for(with_images, tmp_path, browser):
    bundle = with_images
    with served(make_app(bundle, Store(str(tmp_path / "events.sqlite")), api_key="secret")) as origin:
        keyed = Page(browser, origin)
        keyed.open("/#history=i01")
        keyed.until(lambda: keyed.texts("#problem form"))
        keyed.browser.find_element(By.ID, "api-key").send_keys("secret", Keys.ENTER)
        assert keyed.cards_after(1)
        assert keyed.texts("#history .title")[0].startswith("green lamp number 1")
        keyed.until(lambda: image_widths(keyed) == [3])  # which an <img> alone would ask for without the key
        assert [error for error in keyed.errors() if "401" not in error] == []
        assert keyed.asked_elsewhere() == []


def test_the_map_tells_titles_and_adds_items(page, bundle):
    page.open("/map#history=i01")
    page.until(lambda: page.texts("#codes li"))
    codes = bundle.semantic_ids().iloc[:, 1]
    counts = codes[codes >= 0].value_counts()
    assert page.texts("#codes tbody .number") == [str(count) for count in counts]
    page.hover("i20")
    assert page.texts("#tip strong") == titles_of(bundle, ["i20"])
    ActionChains(page.browser).click().perform()
    assert page.tokens() == ["i01", "i20"]
    page.run("document.querySelector('.of-code').focus()")
    assert page.run("return document.querySelector('tr.stands-out').dataset.code") == str(counts.index[0])
    page.press(Keys.TAB)
    assert page.texts("#tip strong") == [page.focused()]  # the map tells where the item lies
    page.press(Keys.ENTER)
    assert len(page.tokens()) == 3
    page.click("#status a")
    assert page.cards_after(3)


def titles_of(bundle, items):
    known = dict(zip(bundle.item_tokens, bundle.titles, strict=True))
    return [known[item] or item for item in items]


def test_every_signal_has_a_sentence():
    script = (resources.files("recbole_bbqrec.serving") / "page" / "recommend.js").read_text(encoding="utf-8")
    said = {words.strip() for words in reasons.WORDS.values()} - {"similar"}  # that one goes on with a modality
    assert {words for words in said if f'"{words}"' not in script} == set()


@pytest.mark.skipif(not REAL, reason="BBQREC_SCREENSHOTS_OF names no bundle")
def test_pictures_for_the_documentation(browser, tmp_path):
    bundle = recbole_bbqrec.load_bundle(REAL)
    with served(make_app(bundle, Store(str(tmp_path / "events.sqlite")))) as origin:
        real = Page(browser, origin)
        history = ",".join(bundle.find(words, 1)[0] for words in ("toy story", "star wars", "empire strikes"))
        for name, path, size, dark in (
            ("serve-page", f"/#history={history}", WIDE, False),
            ("serve-page-dark", f"/#history={history}", WIDE, True),
            ("serve-map", f"/map#history={history}", WIDE, False),
            ("serve-phone", f"/#history={history}", PHONE, False),
        ):
            real.resize(size, dark)
            real.open(path)
            real.until(lambda: real.texts("#recommended .why, #codes li"))
            time.sleep(0.5)  # pictures and fonts
            picture = Image.open(io.BytesIO(real.browser.get_screenshot_as_png()))
            picture.quantize(256).save(PICTURES / f"{name}.png", optimize=True)
        assert real.asked_elsewhere() == []
