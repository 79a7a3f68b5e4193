"""What the requests answer: the lists of the bundle, histories that are kept, new items, views of the catalogue."""

import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

import recbole_bbqrec
from recbole_bbqrec.model.catalogue import ItemFeatures
from recbole_bbqrec.serving.service import live, schemas
from recbole_bbqrec.tokenizer.registry import load as load_tokenizer


@pytest.fixture
def service(client):
    return client()


@pytest.fixture(scope="module")
def bundle(cold):
    return recbole_bbqrec.load_bundle(cold.folder)


def value_of(text, name):
    """Value of a metric in Prometheus' text."""
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def test_recommendations_are_those_of_the_bundle(service, bundle):
    one, two, three = bundle.item_tokens[1:4]
    asked = [
        {"history": [one, two]},
        {"history": [two, one], "k": 3},
        {"history": [one], "exclude_seen": False, "k": 50},
        {"history": [one, "new"], "allow": [one, two, three, "what"], "deny": [three]},
        {"history": []},
        {"history": ["nope"]},
    ]
    for answer, given in zip(service.together(*(("/recommend", each) for each in asked)), asked, strict=True):
        assert answer.status == 200 and answer.json["generation"] == 0
        history, k = given.pop("history"), given.pop("k", 10)
        (expected,) = bundle.recommend([history], k, **given)
        assert [item["item"] for item in answer.json["items"]] == expected.items
        assert [item["score"] for item in answer.json["items"]] == pytest.approx(expected.scores, abs=1e-4)
        assert answer.json["unknown"] == expected.unknown
        titles = [bundle.title(item) for item in expected.items]
        assert [item["title"] for item in answer.json["items"]] == titles
    text = service.get("/metrics").body.decode()
    assert value_of(text, "bbqrec_empty_histories_total") == 2
    assert value_of(text, "bbqrec_unknown_items_total") == 3
    assert value_of(text, 'bbqrec_requests_total{method="POST",route="/recommend",status="200"}') == len(asked)


def test_methods_that_a_client_makes_up_are_counted_together(service):
    for method in ("MADE", "UP"):
        assert service.loop.run_until_complete(service.ask(method, "/health", [], {})).status == 405
    text = service.get("/metrics").body.decode()
    assert value_of(text, 'bbqrec_requests_total{method="any",route="/health",status="405"}') == 2
    assert "MADE" not in text and "UP" not in text


def test_requests_that_wait_are_scored_together(service, bundle, monkeypatch):
    sizes, recommend = [], type(bundle).recommend

    def counted(self, histories, *given):
        sizes.append(len(histories))
        time.sleep(0.02)
        return recommend(self, histories, *given)

    monkeypatch.setattr(type(bundle), "recommend", counted)
    answers = service.together(*[("/recommend", {"history": [token]}) for token in bundle.item_tokens[1:31]])
    assert {answer.status for answer in answers} == {200}
    assert sum(sizes) == 30 and len(sizes) <= 3, sizes


def test_reasons(service, bundle):
    history = bundle.item_tokens[1:4]
    (expected,) = bundle.recommend([history], 3, explain=True)
    answer = service.post("/recommend", {"history": history, "k": 3, "explain": True}).json
    for item, reason in zip(answer["items"], expected.reasons, strict=True):
        why = item["why"]
        assert (why["signal"], why["by"] and why["by"]["item"]) == (reason.signal, reason.item)
        assert why["share"] == pytest.approx(reason.share, abs=1e-3)
        if reason.item:
            assert why["by"]["title"] == bundle.title(reason.item)
            assert why["shared_codes"] == bundle.shared_codes(item["item"], reason.item)
    assert any(item["why"]["by"] for item in answer["items"])


def test_histories_are_kept(service, bundle):
    one, two = bundle.item_tokens[1:3]
    assert service.get("/users/u%20/recommendations").status == 404
    # PostgreSQL would refuse to look for it, and with it for the users of all requests that wait together.
    assert service.get("/users/u\0/recommendations").status == 422
    sent = service.post("/events", {"events": [{"user": "u/1", "item": one}, {"user": "u/1", "item": "later"}]})
    assert (sent.status, sent.json) == (201, {"stored": 2, "unknown": ["later"]})
    service.post("/events", {"events": [{"user": "u/1", "item": two, "time": 5.0}]})
    answer = service.get("/users/u/1/recommendations?k=4&explain=true").json
    assert [item["item"] for item in answer["history"]] == [two, one, "later"]
    assert answer["history"][0] == {
        "item": two,
        "title": bundle.title(two),
        "image": None,
        "code": first_code(bundle, two),
    }
    (expected,) = bundle.recommend([[two, one]], 4)
    assert [item["item"] for item in answer["items"]] == expected.items and answer["unknown"] == ["later"]
    assert answer["items"][0]["why"]
    seen = service.get("/users/u/1/recommendations?k=50&exclude_seen=false").json
    assert {one, two} <= {item["item"] for item in seen["items"]}


def test_new_items_are_ranked_as_by_the_cold_protocol(client, cold, folder):
    """The lists are those of `Catalogue.grown` with the features and codes that the run judges cold items by."""
    bundle, whole = recbole_bbqrec.load_bundle(cold.folder), cold.whole
    new = [row["item_id"] for row in cold.rows]
    known = whole.features.reindex(new)
    codes = load_tokenizer(cold.folder / "tokenizer.safetensors").encode(known.matrices, known.present)
    grown = bundle.grown(ItemFeatures(new, known.matrices, known.present), codes)

    service = client(folder)
    added = service.post("/items", {"items": cold.rows})
    assert (added.status, added.json) == (201, {"added": len(new), "generation": 1}), added.body
    histories = [bundle.item_tokens[1:5], [*new[:2], bundle.item_tokens[7]], new]
    for history, expected in zip(histories, grown.recommend(histories, k=100), strict=True):
        answer = service.post("/recommend", {"history": history, "k": 100}).json
        assert [item["item"] for item in answer["items"]] == expected.items
        assert [item["score"] for item in answer["items"]] == pytest.approx(expected.scores, abs=1e-4)
        assert answer["generation"] == 1 and answer["unknown"] == []
    assert service.get("/health").json["items"] == len(bundle.item_tokens) - 1 + len(new)
    again = service.post("/items", {"items": cold.rows})
    assert again.status == 422 and "in the catalogue already" in again.json["error"]
    assert value_of(service.get("/metrics").body.decode(), "bbqrec_generation") == 1


def test_new_items_as_shops_write_them(client, folder):
    """Usual names of columns, numbers, lists, and no cell where there is nothing to say, each item in its own way."""
    service = client(folder)
    first = {"SKU": 4711, "name": "red lamp number 3", "Manufacturer": "Acme", "unit_price": 3.5, "stock": None}
    others = [{"item_id": "n2", "title": ["blue", "tent"]}, {"id": 7.0, "brand": "Acme", "stock": 12345678901234567}]
    assert service.post("/items", {"items": [first, *others]}).json == {"added": 3, "generation": 1}
    texts = recbole_bbqrec.load_bundle(folder).item_texts()
    assert texts.loc[["4711", "n2", "7"], ["title", "brand", "unit_price", "stock"]].to_numpy().tolist() == [
        ["red lamp number 3", "Acme", "3.5", ""],
        ["blue tent", "", "", ""],
        ["", "Acme", "", "12345678901234567"],
    ]
    for item, message in (
        ({"name": "red lamp"}, "items.0.item_id: Field required"),
        ({"sku": "n", "title": ["red", 3]}, "items.0.title: Input should be a valid string"),
        ({"sku": ["n"], "title": "red lamp"}, "items.0.item_id: Input should be a valid string"),
        ({"sku": True, "title": "red lamp"}, "items.0.item_id: Input should be a valid string"),
        ({"sku": "a" * 257, "title": "red lamp"}, "items.0.item_id: String should have at most 256 characters"),
        ({"sku": "n", "titl": "red lamp"}, "features can use (text of title brand): known words"),
    ):
        answer = service.post("/items", {"items": [item]})
        assert answer.status == 422 and message in answer.json["error"], answer.json


def test_a_generation_that_another_made_is_taken(client, cold, folder, monkeypatch):
    monkeypatch.setattr(live, "POLL_SECONDS", 0.02)
    one, two = client(folder), client(folder)
    one.post("/items", {"items": cold.rows[:1]})
    two.post("/items", {"items": cold.rows[1:2]})  # where the first is perhaps not known yet
    until = time.monotonic() + 10
    while one.get("/health").json["generation"] < 2 and time.monotonic() < until:
        one.loop.run_until_complete(live.asyncio.sleep(0.02))
    tokens = [row["item_id"] for row in cold.rows[:2]]
    answer = one.post("/recommend", {"history": tokens, "exclude_seen": False}).json
    assert answer["generation"] == 2 and answer["unknown"] == []


def test_a_generation_that_is_broken_leaves_the_old_one_in_use(client, folder, monkeypatch, caplog):
    monkeypatch.setattr(live, "POLL_SECONDS", 0.02)
    service = client(folder)
    (folder / "generations.json").write_text("{")
    until = time.monotonic() + 10
    while "cannot be loaded" not in caplog.text and time.monotonic() < until:
        service.loop.run_until_complete(live.asyncio.sleep(0.02))
    assert "cannot be loaded" in caplog.text and service.get("/health").json["generation"] == 0


def test_items(service, bundle):
    token = next(token for token in bundle.item_tokens[1:] if bundle.title(token))
    shown = {"item": token, "title": bundle.title(token), "image": None, "code": first_code(bundle, token)}
    assert service.get("/items?q=" + bundle.title(token).replace(" ", "%20")).json["items"][0] == shown
    assert service.get("/items?q=zzz").json == {"items": []}
    about = service.get(f"/items/{token}").json
    assert about == {**shown, "codes": bundle.semantic_ids().loc[token].iloc[1:].tolist()}
    near = service.get(f"/items/{token}/similar?k=3").json["items"]
    assert [(item["item"], item["score"]) for item in near] == bundle.similar_items(token, 3)
    for path in ("/items/nope", "/items/nope/similar", "/items/nope/image", f"/items/{token}/image"):
        assert service.get(path).status == 404


def test_an_image_is_the_file_and_nothing_beside_it(client, cold, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"an image")
    (tmp_path / "secret.png").write_bytes(b"a secret")
    bundle = recbole_bbqrec.load_bundle(cold.folder)
    one, two, three = bundle.item_tokens[1:4]
    names = {one: "a.png", two: "../secret.png", three: str(tmp_path / "secret.png")}
    bundle._items = replace(bundle._items, images=names, folders=(tmp_path / "images",))
    service = client(bundle)
    found = service.get(f"/items/{one}/image")
    assert (found.status, found.body, found.headers["content-type"]) == (200, b"an image", "image/png")
    assert service.get(f"/items/{one}").json["image"] == f"/items/{one}/image"
    for other in (two, three):
        assert service.get(f"/items/{other}/image").status == 404
        assert service.get(f"/items/{other}").json["image"] is None


def first_code(bundle, token):
    return bundle.semantic_ids()["c0"][token]


def test_the_map_and_the_codes(service, bundle):
    drawn, codes = service.get("/catalogue/map").json, bundle.semantic_ids()["c0"]
    assert [point["item"] for point in drawn["points"]] == bundle.item_tokens[1:]
    assert [point["code"] for point in drawn["points"]] == [code if code >= 0 else None for code in codes]
    places = np.array([[point["x"], point["y"]] for point in drawn["points"]])
    vectors = bundle.vectors[1:].numpy()
    parts = np.linalg.eigvalsh(np.cov(vectors.T))[::-1]
    assert np.cov(places.T) == pytest.approx(np.diag(parts[:2]), rel=1e-3, abs=1e-4)
    table = service.get("/catalogue/codes").json["codes"]
    assert {row["code"]: row["n"] for row in table} == codes[codes >= 0].value_counts().to_dict()
    for row in table:
        assert len(row["items"]) == min(row["n"], 5)
        assert all(codes[item["item"]] == row["code"] for item in row["items"])
        assert all(item["title"] == bundle.title(item["item"]) for item in row["items"])


JSON = "application/json"
MANY = json.dumps({"items": [{"item_id": "n", **dict.fromkeys(map(str, range(65)), "x")}]})
WRONG = [
    ("/recommend", '{"histroy": ["i01"]}', JSON, "histroy: unknown, did you mean history?"),
    ("/recommend", '{"what": 1}', JSON, "what: unknown, expected history, k, exclude_seen, allow, deny, explain"),
    ("/recommend", "{}", JSON, "history: Field required"),
    ("/events", '{"events": [{"usr": "u", "item": "i01"}]}', JSON, "events.0.usr: unknown, did you mean user?"),
    ("/items", '{"items": [{"sku": "n", "image": "x"}]}', JSON, "items.0.image: not by HTTP; bbqrec items add takes"),
    (
        "/items",
        json.dumps({"items": [dict.fromkeys(map(str, range(65)), "x") | {"item_id": "n"}]}),
        JSON,
        "items: found 65",
    ),
    (
        "/events",
        '{"events": [{"user": "u", "item": "i01", "time": 1700000000000}]}',
        JSON,
        "events.0.time: found 1700000000000, expected seconds since 1970",
    ),
    ("/recommend", "{bad", JSON, "the body is no JSON (line 1 column 2: Expecting property name"),
    ("/recommend", '{\n"k": 1,\n}', JSON, "the body is no JSON (line 3 column 1: "),
    ("/recommend", "", JSON, "body: Field required"),
    ("/recommend", '{"history": []}', "", "found no Content-Type; send Content-Type: application/json"),
    ("/events", "{}", "text/plain", "found Content-Type 'text/plain'; send Content-Type: application/json"),
]


@pytest.mark.parametrize(("path", "body", "kind", "message"), WRONG)
def test_what_is_wrong_is_said(service, path, body, kind, message):
    answer = service.loop.run_until_complete(service.ask("POST", path, [body.encode()], {"content-type": kind}))
    assert answer.status == 422 and answer.json["error"].startswith(message), answer.json


def test_what_the_framework_refuses_is_said_too(service):
    answer = service.loop.run_until_complete(service.ask("POST", "/recommend", [b'{"\xe4"}'], {"content-type": JSON}))
    assert (answer.status, answer.json["error"]) == (400, "the body is not UTF-8 text; send JSON in UTF-8")
    for path, status, message in (("/recomend", 404, "Not Found"), ("/items/i01/similar", 405, "Method Not Allowed")):
        answer = service.post(path, {})
        assert (answer.status, answer.json["error"]) == (status, f"{message}; GET /docs has all requests")


def test_the_list_of_requests(service):
    page = service.get("/docs")
    described = service.get("/openapi.json").json
    assert {"/recommend", "/events", "/users/{user}/recommendations", "/items", "/health"} <= set(described["paths"])
    shown = page.body.decode()
    for path in described["paths"]:
        assert path in shown
    for row in (
        "<td><code>k</code><td>integer, at least 1, at most 500<td><code>10</code>",
        "<td><code>exclude_seen</code><td>boolean: leave out the items of the history<td><code>true</code>",
        "<td>array of string, at most 256 characters, at most 10000 entries or null: choose from these alone<td>",
        "<td>array of object, at most 1000 entries: A user met an item. Sent again with the same <code>time</code>",
        "<td><code>events[].user</code><td>string, at most 256 characters<td>required",
        "<td><code>items[].item_id</code><td>string, at most 256 characters<td>required",
        "one line, <code>error</code>.",
    ):
        assert row in shown
    assert not re.search("`|Model|True|None", shown)
    assert "http" not in re.sub("HTTP", "", shown), "nothing from elsewhere"
    assert page.headers["content-security-policy"].startswith("default-src 'self'")


def test_one_wrong_number_of_a_vector_is_enough():
    given = {"items": [{"item_id": f"i{number}", "vectors": {"text": ["one"] * 8192}} for number in range(3)]}
    with pytest.raises(ValidationError) as refused:
        schemas.NewItemsRequest.model_validate(given)
    assert [error["loc"] for error in refused.value.errors()] == [("items", n, "vectors", "text", 0) for n in range(3)]
