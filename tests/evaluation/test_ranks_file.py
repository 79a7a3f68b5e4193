import polars as pl
import pytest
from conftest import settings, tiny_interactions

from recbole_bbqrec import cli, quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.evaluation.ranking import NOT_FOUND

READERS = {"csv": lambda path: pl.read_csv(path, schema_overrides={"user": pl.String}), "parquet": pl.read_parquet}


@pytest.mark.parametrize("kind", READERS)
def test_a_row_for_every_judged_target(tiny, tmp_path, kind):
    path = tmp_path / "made" / f"ranks.{kind}"
    given = settings(tiny, checkpoint_dir=str(tmp_path), final=True, scoring="generate", beam_size=5)
    _, ranks = quick_start.execute(config_dict={**given, "ranks_file": str(path)})
    found = READERS[kind](path)
    assert found.columns == ["split", "user", "item", "masked", "unmasked"]
    sequences = {}
    for user, item, _ in tiny_interactions():
        sequences.setdefault(user, []).append(item)
    for split, back in (("valid", -2), ("test", -1)):
        rows = found.filter(pl.col("split") == split)
        assert dict(rows.select("user", "item").iter_rows()) == {user: items[back] for user, items in sequences.items()}
        for column in ("masked", "unmasked"):
            expected = [None if rank == NOT_FOUND else rank for rank in getattr(ranks[split], column).tolist()]
            assert rows[column].to_list() == expected and 0 < rows[column].null_count() < 60
    assert [file.name for file in path.parent.iterdir()] == [path.name], "written whole, nothing else is left"


def test_names_that_cannot_be_written_are_said_before_the_run(tiny, tmp_path):
    with pytest.raises(InputError, match=r"^ranks_file: found ranks\.json, expected a name that ends in \.csv or "):
        quick_start.run(config_dict=settings(tiny, ranks_file="ranks.json"))
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(InputError, match=r"^ranks_file: .*a\.csv cannot be written \(Is a directory\)"):
        quick_start.run(config_dict=settings(tiny, ranks_file=str(tmp_path / "a.csv")))


def test_many_runs_do_not_write_over_it(tiny, capfd):
    given = [f"--{key}={value}" for key, value in settings(tiny, "Pop").items()]
    assert cli.run([*given, "--seeds=2", "--ranks_file=a.csv"]) == 2
    assert "error: --ranks_file: found it beside many runs, which would overwrite it" in capfd.readouterr().err
