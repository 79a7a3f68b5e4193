import json

import numpy as np
import pytest
import torch
import yaml
from conftest import arguments, settings
from experiments.fakes import FakeExecute, in_place_of_runs

from recbole_bbqrec import registry
from recbole_bbqrec.config import Config
from recbole_bbqrec.data.dataloader import split_loaders
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation import report
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.experiments import item_bytes, records
from recbole_bbqrec.experiments.item_bytes import Row, applicable

BOTH = {"image_fields": "image_codes", "image_encoder": "codes"}


@pytest.fixture(autouse=True)
def _figures(monkeypatch):
    monkeypatch.setattr(report, "line_figure", lambda *given: json.dumps(given).encode())


def with_codes(folder, **changes):
    return records.comparable_settings(Config(config_dict=settings(folder, item_bytes.CODES_MODEL, **changes)))


def run(folder, tmp_path, seeds=1, execute=None, more=(), **changes):
    execute = execute or FakeExecute()
    given = [one for one in arguments(folder, **changes) if not one.startswith("--second_stage")]
    with in_place_of_runs(execute):
        code = item_bytes.study("tiny", seeds, [*given, *more], tmp_path / "results")
    return code, execute


def page_and_content(tmp_path):
    page = (tmp_path / "results/item-bytes-tiny.md").read_text()
    return page, json.loads((tmp_path / "results/files/item-bytes-tiny.json").read_text())


@pytest.mark.parametrize("row", [Row("id", 16), Row("id", 4), Row("codes", 8), Row("hashed", 4), Row("kmeans", 16)])
def test_reckoned_bytes_are_those_of_the_tensors(tiny, row):
    small = {"hidden_size": 16, "sid_codebook_size": 8, "sid_epochs": 1, "sid_min_steps": 5, "feature_dim": 16}
    changes = applicable(with_codes(tiny, **small))[0][row]
    config = Config(config_dict=settings(tiny, **{"report_card": False, **small, **changes}))
    dataset = registry.get_dataset(config["model"])(config)
    train, _, _ = split_loaders(config, dataset)
    table = registry.build_model(config, train._dataset).item_table
    codes = train._dataset.catalogue.semantic_ids.codes if row.n_codes else torch.empty(0)
    assert codes.numel() == 41 * row.n_codes
    found = sum(parameter.numel() * 4 for parameter in table.parameters()) + codes.to(torch.uint8).nbytes
    assert item_bytes.item_bytes(records.comparable_settings(config), 40, row.n_codes) == found


def test_an_id_table_grows_by_its_width_and_a_code_table_by_a_byte_a_code(tiny):
    base = {"hidden_size": 64, "use_features": False, "id_dropout_prob": 0.0}
    ids = {**base, "use_item_id": True, "use_code_embedding": False, "id_dim": 8}
    codes = {**base, "use_item_id": False, "use_code_embedding": True, "sid_codebook_size": 256}
    assert item_bytes.item_bytes(ids, 10**8, 0) == 4 * (8 * (10**8 + 1) + 8 * 64)
    assert item_bytes.item_bytes(codes, 10**8, 4) == 4 * 64 * (1 + 4 * 256) + 4 * (10**8 + 1)
    large = {**codes, "sid_codebook_size": 257}
    assert item_bytes.item_bytes(large, 10, 4) == 4 * 64 * (1 + 4 * 257) + 2 * 4 * 11


def test_rows_have_as_many_codes_as_they_say_or_are_left_out(tiny):
    found, left_out = applicable(with_codes(tiny))
    assert [row.name for row in found][:4] == ["id-64", "codes-16", "mixed-16", "codes-4"]
    assert len(found) == 16 and not left_out
    mixed = found[Row("mixed", 16)]
    assert mixed["sid_levels"] == 2 and mixed["n_identity_codes"] == 12 and mixed["codes"] == "learned"
    assert all(found[row].get("n_identity_codes", 0) == 0 for row in found if row.kind != "mixed")
    assert found[Row("id", 64)]["id_dim"] is None and found[Row("id", 32)]["id_dim"] == 32
    assert [found[Row("codes", size)]["sid_levels"] for size in (4, 8, 16)] == [2, 4, 8]  # of two signals
    assert [found[Row("kmeans", size)]["sid_levels"] for size in (4, 8, 16)] == [4, 8, 16]
    found, left_out = applicable(with_codes(tiny, **BOTH))
    assert found[Row("mixed", 8)]["sid_levels"] == 1 and found[Row("mixed", 8)]["n_identity_codes"] == 5
    assert {"codes-4", "codes-8", "codes-16", "hashed-4", "hashed-8", "hashed-16"} == left_out.keys()
    assert left_out["codes-8"] == "8 codes an item cannot be shared by 3 signals"
    found, left_out = applicable(with_codes(tiny, text_encoder=None, hidden_size=16))
    assert left_out == dict.fromkeys(["kmeans-16", "kmeans-4", "kmeans-8"], "there are no features")
    assert [row.size for row in found if row.kind == "id"] == [16, 8, 4]
    assert found[Row("hashed", 16)]["sid_levels"] == 16


def test_every_row_is_a_run_of_its_own_the_first_seed_first(tiny, tmp_path):
    code, execute = run(tiny, tmp_path, seeds=2, seed=5)
    assert code == 0
    assert [call["seed"] for call in execute.calls] == [5] * 14 + [6] * 14
    assert all(call["final"] is False for call in execute.calls)
    keys = "model", "id_dim", "codes", "tokenizer", "sid_levels", "n_identity_codes"
    assert len({tuple(call.get(key) for key in keys) for call in execute.calls}) == 14
    assert len(list((tmp_path / "results/runs/tiny").glob("*.npz"))) == 28
    _, execute = run(tiny, tmp_path, seeds=2, seed=5)
    assert not execute.calls, "what has a record is not run again"


def test_the_page(tiny, tmp_path, capsys):
    run(tiny, tmp_path)
    page, content = page_and_content(tmp_path)
    assert page in capsys.readouterr().out and str(tiny) not in page + json.dumps(content)
    rows = {row["row"]: row for row in content["rows"]}
    ids, codes = [f"id-{size}" for size in (4, 8, 16)], ("hashed", "kmeans", "codes")
    assert list(rows) == [*ids, *(f"{kind}-{size}" for kind in codes for size in (4, 8, 16)), "mixed-8", "mixed-16"]
    assert content["full"] == "id-16" and rows["id-16"]["masked"]["ndcg@10"]["change"] is None
    assert rows["codes-4"]["bytes"] == 4 * 16 * (1 + 4 * 8) + 4 * 41
    # Random codes make the ranks of these runs half as large again; everything else changes nothing.
    worse, same = (rows[name]["masked"]["ndcg@10"] for name in ("hashed-8", "id-4"))
    assert worse["change"]["high"] < 0 and worse["p_holm"] < 0.001 and same["p_holm"] == 1
    pairs = {tuple(pair["rows"]): pair for pair in content["pairs"]}
    nearest = {("codes-4", "id-16"), ("codes-8", "id-16"), ("codes-16", "id-16")}
    against = {(f"codes-{size}", f"{kind}-{size}") for kind in ("hashed", "kmeans") for size in (4, 8, 16)}
    assert pairs.keys() == nearest | against
    gain = pairs["codes-8", "hashed-8"]
    assert gain["change"]["low"] > 0 and gain["p_holm"] < 0.001 and pairs["codes-8", "kmeans-8"]["p_holm"] == 1
    assert f"`codes-8` and `hashed-8` {gain['change']['mean']:+.1f} %" in page
    line = next(line for line in page.splitlines() if line.startswith("| hashed-8"))
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[1:5] == ["hashed-8†", "1", f"{rows['hashed-8']['bytes'] / 2**20:.3f}", "12,345"]
    assert f"{worse['change']['mean']:+.1f}" in line and "< 0.001" in line
    assert "one seed: screening" in page and "test was not looked at" in page and "| 16 codes an item" in page
    assert yaml.safe_load(page.split("```yaml")[1].split("```")[0])["hidden_size"] == 16
    title, x, y, points = json.loads((tmp_path / "results/files/item-bytes-tiny.png").read_bytes())
    assert (title, x, y) == ("tiny, validation, seen items masked", "MiB of item parameters", "N@10")
    assert [len(line) for line in points.values()] == [3, 3, 3, 3, 2]
    assert points["ID tables"][0] == [rows["id-4"]["bytes"] / 2**20, rows["id-4"]["masked"]["ndcg@10"]]


def test_holm_counts_rows_and_pairs_together(tiny, tmp_path):
    run(tiny, tmp_path)
    _, content = page_and_content(tmp_path)
    tests = [entry for row in content["rows"] for entry in row["masked"].values() if entry["p"] is not None]
    tests += content["pairs"]
    least = min(tests, key=lambda entry: entry["p"])
    assert len(tests) == 2 * 13 + 9 and least["p_holm"] == pytest.approx(min(1, len(tests) * least["p"]))


def test_it_goes_on_where_it_was_interrupted_with_the_rows_there_are_on_the_page(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path, execute=FakeExecute(interrupted_at=2))
    page, content = page_and_content(tmp_path)
    assert [row["row"] for row in content["rows"]] == ["id-16", "codes-16"]
    assert "- **codes-16**" in page and "**codes-4**" not in page and "| 4 codes an item" in page, (
        "reckoned all the same"
    )
    _, execute = run(tiny, tmp_path)
    assert len(execute.calls) == 12


def test_a_row_that_fails_is_named_and_without_the_full_table_nothing_is_compared(tiny, tmp_path):
    code, _ = run(tiny, tmp_path, execute=FakeExecute(fails={"random"}))
    page, content = page_and_content(tmp_path)
    assert code == 1 and len(content["rows"]) == 11 and "- hashed-4, seed 2020: " in page
    next((tmp_path / "results/runs/tiny").glob("id-16-*.json")).unlink()
    run(tiny, tmp_path, execute=FakeExecute(fails={None, "random"}))
    page, content = page_and_content(tmp_path)
    assert (
        "no finished run yet: id-16, hashed-4, hashed-8, hashed-16\n- without `id-16`" in page
        and len(content["rows"]) == 10
    )
    assert all(entry["p"] is None for row in content["rows"] for entry in row["masked"].values())
    assert all(pair["p_holm"] == 1 for pair in content["pairs"])


def test_another_split_has_a_page_of_its_own(tiny, tmp_path):
    run(tiny, tmp_path)
    page, _ = page_and_content(tmp_path)
    assert run(tiny, tmp_path, more=["--eval_args={'split': {'RS': [0.8, 0.1, 0.1]}}"])[0] == 0
    assert page_and_content(tmp_path)[0] == page
    assert "(files/item-bytes-tiny-RS.png)" in (tmp_path / "results/item-bytes-tiny-RS.md").read_text()


def test_codes_are_compared_with_rows_that_reach_nothing(tiny, tmp_path, monkeypatch):
    beyond = staticmethod(lambda *_: Ranks(np.arange(1, 31), np.full(30, 500), np.full(30, 500)))
    monkeypatch.setattr(FakeExecute, "ranks", beyond)
    assert run(tiny, tmp_path)[0] == 0
    page, content = page_and_content(tmp_path)
    assert {pair["change"] for pair in content["pairs"]} == {None}
    assert "`codes-16` and `hashed-16` p = 1.000" in page


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--id_dim=4", "--id_dim: the study sets it"),
        ("--final", "--final: the study sets it for its rows, and never looks at test"),
        ("--model=SASRec", "--model: the study sets it"),
        ("--n_layer=1", "n_layer"),
        ("--beam_size=3", "beam_size: found 3, which this run of .* would not use"),
    ],
)
def test_mistakes_are_said_before_any_run(tiny, tmp_path, more, message):
    execute = FakeExecute()
    with pytest.raises(InputError, match=message):
        run(tiny, tmp_path, execute=execute, more=[more])
    with pytest.raises(InputError, match="--seeds: found 0, expected at least 1"):
        run(tiny, tmp_path, seeds=0, execute=execute)
    assert not execute.calls
