import shutil

import numpy as np
import pytest
from conftest import settings, write_dataset
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_bbqrec.config import Config
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.ranking import Ranks
from recbole_bbqrec.experiments import records

RANKS = {"valid": Ranks(np.array([3, 1, 2]), np.array([5, 999, 4000]), np.array([9, 1200, 4001]))}


def record(seed=1, key="a" * 16, **more):
    about = {"model": "BBQRec", "seed": seed, "run_key": key, "data_fingerprint": "d" * 16}
    return {**about, "metrics": {"valid": {}}, "settings": {}, "seconds": {}, **more}


def config(folder, **changes):
    return Config(config_dict=settings(folder, **changes))


def test_a_record_comes_back_with_its_ranks(tmp_path):
    path = records.write(tmp_path / "runs", "full", record(note=[1, None]), RANKS)
    assert path.name == f"full-1-{'a' * 16}.json"
    run = records.Run(path)
    assert run.record == {"name": "full", **record(note=[1, None])}
    ranks = run.ranks["valid"]
    assert ranks.users.tolist() == [1, 2, 3]
    assert ranks.masked.tolist() == [999, 1000, 5] and ranks.unmasked.tolist() == [1000, 1000, 9]


@given(st.integers(0, 10_000), st.integers(1, 60))
@hypothesis_settings(deadline=None)
def test_kept_ranks_give_the_same_metrics(seed, n):
    generator = np.random.default_rng(seed)
    masked = generator.integers(1, 2500, n)
    users = generator.permutation(100_000)[:n]
    given_ranks = {
        "valid": Ranks(users, masked, masked + generator.integers(0, 300, n)),
        "test": Ranks(users, masked, masked),
    }
    back = records.unpack_ranks(records.pack_ranks(given_ranks))
    for split, before in given_ranks.items():
        after, order = back[split], np.argsort(before.users)
        np.testing.assert_array_equal(after.users, before.users[order])
        for column in ("masked", "unmasked"):
            clipped = np.minimum(getattr(before, column), records.MAX_RANK)[order]
            np.testing.assert_array_equal(getattr(after, column), clipped)
    assert back["valid"].metrics(["NDCG"], [10])["masked"]["ndcg@10"] == pytest.approx(
        given_ranks["valid"].metrics(["NDCG"], [10])["masked"]["ndcg@10"], abs=1e-12
    )


def test_which_targets_are_cold_is_kept_with_the_ranks():
    cold = np.arange(30) % 7 == 0
    ranks = Ranks(np.arange(30)[::-1], np.arange(1, 31), np.arange(1, 31), cold)
    back = records.unpack_ranks(records.pack_ranks({"valid": ranks}))["valid"]
    np.testing.assert_array_equal(back.cold, cold[::-1])
    np.testing.assert_array_equal(back.groups()["cold"].masked, ranks.masked[cold][::-1])
    assert records.unpack_ranks(records.pack_ranks(RANKS))["valid"].cold is None


def test_that_ranks_are_of_one_list_a_user_is_kept_with_them():
    ranks = Ranks(np.array([2, 1, 2]), np.array([3, 1, 1]), np.array([3, 1, 1]), per_user=True)
    back = records.unpack_ranks(records.pack_ranks({"valid": ranks}))["valid"]
    assert back.per_user and back.metrics(["Recall"], [1]) == ranks.metrics(["Recall"], [1])
    assert not records.unpack_ranks(records.pack_ranks(RANKS))["valid"].per_user


def test_a_record_counts_where_it_tells_what_is_asked(tmp_path):
    told = {"metrics": {"valid": {"masked": {"giniindex@10": 0.5}}}, "grouped_by": ["length"]}
    records.write(tmp_path, "full", record(**told), RANKS)

    def is_found(metrics=(), groups=()):
        return records.find(tmp_path, 1, "a" * 16, ("valid",), records.Asked(metrics, groups)) is not None

    assert is_found() and is_found(("giniindex@10",), ("length",))
    assert not is_found(("giniindex@5",)) and not is_found((), ("popularity",))


def test_a_long_tail_of_another_size_is_judged_anew(tiny, tmp_path):
    def asked(**changes):
        return records.Asked.of(config(tiny, metrics=["NDCG", "TailPercentage"], topk=[10], **changes))

    told = {"metrics": {"valid": {"masked": {"tailpercentage@10": 0.5}}}, "tail_ratio": {"valid": 0.1}}
    run = records.Run(records.write(tmp_path, "full", record(**told), RANKS))
    assert run.tells(("valid",), asked()) and not run.tells(("valid",), asked(tail_ratio=0.5))
    assert run.tells(("valid",), records.Asked.of(config(tiny))), "without the metric it does not count"
    both = {**told, "metrics": {**told["metrics"], "test": told["metrics"]["valid"]}, "tail_ratio": {"valid": 0.5}}
    both["tail_ratio"]["test"] = 0.1
    known = records.Run(records.write(tmp_path, "both", record(**both), {**RANKS, "test": RANKS["valid"]}))
    assert records.joined(known, record(**told), RANKS)[0]["tail_ratio"] == {"valid": 0.1, "test": 0.1}


def test_a_run_that_is_judged_again_keeps_the_splits_that_it_was_not_asked_for(tmp_path):
    judged, labels = {"masked": {"ndcg@10": 0.5}}, {"valid": {}, "test": {"all": {"auc": 0.7}}}
    both = record(metrics={"valid": {"masked": {}}, "test": judged}, users={"valid": 3, "test": 3}, labels=labels)
    records.write(tmp_path, "full", both, {**RANKS, "test": RANKS["valid"]})
    new = record(metrics={"valid": {"masked": {"giniindex@10": 0.1}}}, users={"valid": 3})
    found, ranks = records.joined(records.find(tmp_path, 1, "a" * 16), new, RANKS)
    assert found["metrics"] == {"valid": {"masked": {"giniindex@10": 0.1}}, "test": {"masked": {"ndcg@10": 0.5}}}
    assert found["users"] == {"valid": 3, "test": 3} and ranks.keys() == {"valid", "test"} and "groups" not in found
    assert found["labels"] == {"test": {"all": {"auc": 0.7}}}
    assert records.joined(None, new, RANKS) == (new, RANKS)


def test_groups_are_asked_for_in_each_split(tmp_path):
    both, of_valid = {**RANKS, "test": RANKS["valid"]}, {"popularity 0": {"rows": 3}}
    records.write(tmp_path, "full", record(metrics={"valid": {}, "test": {}}), both)
    known = records.find(tmp_path, 1, "a" * 16)
    asked = records.Asked(groups=("popularity",))
    new = record(metrics={"valid": {}}, groups={"valid": of_valid}, grouped_by={"valid": ["popularity"]})
    found, _ = records.joined(known, new, RANKS)
    for grouped_by in (found["grouped_by"], ["popularity"]):  # the second as it was kept before
        run = records.Run(records.write(tmp_path, "full", {**found, "grouped_by": grouped_by}, both))
        assert run.splits == {"valid", "test"} and run.tells(("valid",), asked)
        assert not run.tells(("valid", "test"), asked), "test was judged without groups"
    later = record(metrics={"valid": {}, "test": {}}, groups={"valid": of_valid, "test": of_valid})
    later["grouped_by"] = {"valid": ["popularity"], "test": ["popularity"]}
    run = records.Run(records.write(tmp_path, "full", later, both))
    assert run.tells(("valid", "test"), asked)
    found, _ = records.joined(run, record(metrics={"valid": {}}), RANKS)
    kept = records.Run(records.write(tmp_path, "full", found, both))
    assert kept.tells(("test",), asked) and not kept.tells(("valid",), asked)


def test_splits_of_two_versions_of_the_code_are_marked_as_of_the_earlier_one(tmp_path):
    both, splits = {**RANKS, "test": RANKS["valid"]}, {"valid": {}, "test": {}}
    old = records.Run(records.write(tmp_path, "full", record(metrics=splits, source="old"), both))
    new = record(source="new")
    assert records.joined(old, new, RANKS)[0]["source"] == "old"
    assert records.joined(old, record(metrics=splits, source="new"), both)[0]["source"] == "new", "all judged anew"
    same = record(metrics=splits, source="old", same_ranks={"source": "new", "epochs": 2})
    same = records.Run(records.write(tmp_path, "full", same, both))
    assert records.joined(same, new, RANKS)[0]["source"] == "new", "which was seen to give the same ranks"
    third = records.joined(same, record(source="third"), RANKS)[0]
    assert third["source"] == "old" and third["same_ranks"] == {"source": "new", "epochs": 2}


def test_ranks_of_a_large_data_set_take_little_room():
    generator, n = np.random.default_rng(0), 36_000
    # As on real data: a rank of k or better for a share of about k to the power of .35.
    masked = np.minimum(18_000 * generator.random(n) ** (1 / 0.35) + 1, 18_000).astype(int)
    assert 0.3 < (masked < 1000).mean() < 0.4
    split = Ranks(np.arange(1, n + 1), masked, masked + generator.integers(0, 8, n))
    assert len(records.pack_ranks({"valid": split, "test": split})) < 90_000


def test_equal_ranks_give_equal_files():
    assert records.pack_ranks(RANKS) == records.pack_ranks(RANKS)


def test_a_record_exists_only_once_it_is_complete(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(records.storage, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write(tmp_path, "full", record(), RANKS)
    assert records.find(tmp_path, 1, "a" * 16) is None and records.runs_in(tmp_path) == []


def test_finding_goes_by_seed_key_and_splits_not_by_name(tmp_path):
    path = records.write(tmp_path, "full", record(seed=20), RANKS)

    def found(*given):
        run = records.find(tmp_path, *given)
        return run and run.path

    assert found(20, "a" * 16) == path
    assert found(0, "a" * 16) is None and found(20, "b" * 16) is None
    assert found(20, "a" * 16, ("valid", "test")) is None
    both = record(seed=20, metrics={"valid": {}, "test": {}})
    other = records.write(tmp_path, "later-name", both, {**RANKS, "test": RANKS["valid"]})
    assert found(20, "a" * 16, ("valid", "test")) == other
    records.write(tmp_path, "full", record(seed=3), RANKS)
    runs = records.by_seed(records.runs_in(tmp_path), "a" * 16, "valid")
    assert list(runs) == [3, 20] and set(runs[20].ranks) == runs[20].splits == {"valid", "test"}


def test_damaged_records_are_named(tmp_path):
    path = records.write(tmp_path, "full", record(), RANKS)
    path.with_suffix(".npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"full-1-a+\.npz: not readable .*delete .*\.json and run again"):
        _ = records.Run(path).ranks
    path.write_text("{")
    with pytest.raises(InputError, match=r"full-1-a+\.json: not a readable record"):
        records.Run(path)


def test_what_a_cache_had_spared_is_unknown_in_records_from_before(tmp_path):
    def read(**more):
        return records.Run(records.write(tmp_path, "full", record(**more), RANKS)).record

    features = {"text_encoder": "tfidf", "attach_item_features": True}
    spared = {"features": 0.0, "tokenizer": 0.19, "train": 100.0, "second stage": 0.0}
    more = {"settings": {**features, "candidate_similarity": ["text"], "topk": [5, 10, 20]}, "seconds": spared}
    assert read(**more)["seconds"] == {"features": None, "tokenizer": None, "train": 100.0, "second stage": None}
    assert "topk" not in read(**more)["settings"]
    assert read(**more, peak_memory_is_bound=False)["seconds"] == spared, "today's say what they mean"
    made = {"features": 1.5, "tokenizer": 57.8, "train": 100.0, "second stage": 1.2}
    assert read(**{**more, "seconds": made})["seconds"] == made
    before = {"candidates" if name == "second stage" else name: taken for name, taken in made.items()}
    assert read(**{**more, "seconds": before})["seconds"] == made, "what it was called once"
    nothing = {"features": 0.0, "tokenizer": 0.0, "train": 100.0, "second stage": 0.0}
    plain = {"text_encoder": "tfidf", "attach_item_features": False, "candidate_similarity": []}
    assert read(settings=plain, seconds=nothing)["seconds"] == nothing


def test_an_error_is_kept_until_the_run_succeeds(tmp_path):
    records.keep_error(tmp_path, "full", 1, "a" * 16, "Traceback\nValueError: x\n")
    (path,) = tmp_path.iterdir()
    assert path.read_text() == "Traceback\nValueError: x\n"
    assert records.failures_in(tmp_path) == {("full", "1", "a" * 16): "full, seed 1: ValueError: x"}
    records.write(tmp_path, "full", record(seed=2), RANKS)
    assert len(records.failures_in(tmp_path)) == 1
    records.write(tmp_path, "full", record(), RANKS)
    assert records.failures_in(tmp_path) == {}


def test_what_makes_runs_the_same(tiny, tmp_path):
    base = records.comparable_settings(config(tiny))
    assert (
        records.comparable_settings(config(tiny, seed=7, final=True, show_progress=True, data_path=str(tiny))) == base
    )
    assert records.comparable_settings(config(tiny, hidden_size=32)) != base
    assert not [value for value in base.values() if str(tmp_path) in str(value) or str(tiny) in str(value)]


def test_vectors_count_by_content(tmp_path):
    write_dataset(tmp_path)
    file = tmp_path / "tiny" / "clip.npy"
    (tmp_path / "tiny" / "clip.tokens.txt").write_text("i01\n")
    np.save(file, np.ones((1, 2), np.float32))
    given_config = config(tmp_path, text_encoder="clip.npy")
    before = records.comparable_settings(given_config)
    assert before["text_encoder"].startswith("clip.npy (")
    np.save(file, np.zeros((1, 2), np.float32))
    assert records.comparable_settings(given_config) != before
    assert records.data_fingerprint(given_config) == records.data_fingerprint(config(tmp_path))


def test_a_model_folder_counts_by_its_files(tmp_path):
    write_dataset(tmp_path)
    model = tmp_path / "tiny" / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    given_config = config(tmp_path, text_encoder="model")
    before = records.comparable_settings(given_config)["text_encoder"]
    (model / "config.json").write_text("{ }")
    assert before.startswith("model (") and records.comparable_settings(given_config)["text_encoder"] != before


def test_data_fingerprint_notices_files_and_images(tmp_path):
    write_dataset(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one = records.data_fingerprint(config(tmp_path / "a"))
    assert one == records.data_fingerprint(config(tmp_path / "b", text_encoder=None, hidden_size=32))
    images = tmp_path / "b" / "tiny" / "images"
    images.mkdir()
    (images / "i01.jpg").write_bytes(b"1")
    (images / "notes.txt").write_bytes(b"1")
    with_image = records.data_fingerprint(config(tmp_path / "b", image_folder="images"))
    (images / "notes.txt").write_bytes(b"22")
    assert one != with_image == records.data_fingerprint(config(tmp_path / "b", image_folder="images"))
    (images / "i01.jpg").write_bytes(b"22")
    assert with_image != records.data_fingerprint(config(tmp_path / "b", image_folder="images"))
    for kind in ("inter", "item"):
        path = tmp_path / "b" / "tiny" / f"tiny.{kind}"
        content = path.read_text()
        path.write_text(content[:-2] + "\n")
        assert records.data_fingerprint(config(tmp_path / "b")) != one
        path.write_text(content)
    assert records.data_fingerprint(config(tmp_path / "b")) == one


def test_data_statistics(tmp_path):
    write_dataset(tmp_path, rows=[("u1", "i01", 1), ("u1", "i02", 2), ("u2", "i01", 1), ("u2", "i03", 1)])
    assert records.data_statistics(config(tmp_path)) == {
        "users": 2,
        "items": 3,
        "interactions": 4,
        "interactions_per_user": 2.0,
        "density": 4 / 6,
        "tied_times": 0.5,
        "modalities": ["text (tfidf)"],
    }
