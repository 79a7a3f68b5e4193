import subprocess
import sys

import pytest
from conftest import settings

import recbole_bbqrec
from recbole_bbqrec import cli, quick_start
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.experiments import ablation, cost


@pytest.fixture
def called(monkeypatch):
    """What the commands hand over to their parts."""
    calls = []
    monkeypatch.setattr(ablation, "ablate", lambda *given: calls.append(("ablate", *given)) or 0)
    monkeypatch.setattr(ablation, "remake", lambda *given: calls.append(("remake", *given)))
    monkeypatch.setattr(cost, "cost", lambda *given: calls.append(("cost", *given)))
    return calls


def test_ablate(called):
    assert cli.main(["ablate", "--dataset=Beauty"]) == 0
    given = ["--seeds=1", "--rows=full,no-codes", "--final", "--results=out", "--epochs=3", "--data_path=/d"]
    assert cli.main(["ablate", "--dataset=Beauty", *given]) == 0
    assert called == [
        ("ablate", "Beauty", [], 3, [], False, cli.Path("results")),
        ("ablate", "Beauty", ["full", "no-codes"], 1, ["--epochs=3", "--data_path=/d"], True, cli.Path("out")),
    ]


def test_table_only(called, capsys):
    assert cli.main(["ablate", "--dataset=Beauty", "--table-only", "--final"]) == 0
    assert called == [("remake", "Beauty", True, cli.Path("results"))]
    assert cli.main(["ablate", "--dataset=Beauty", "--table-only", "--epochs=3"]) == 2
    assert capsys.readouterr().err.startswith("error: --table-only reads records alone")


def test_cost(called):
    assert cli.main(["cost", "--dataset=Sports", "--users=7", "--rounds=2", "--n_layers=1"]) == 0
    assert called == [("cost", "Sports", 7, 2, ["--n_layers=1"], cli.Path("results"))]


def test_a_mistyped_option_is_not_taken_for_another(called):
    cli.main(["ablate", "--dataset=Beauty", "--row=club", "--seed=5"])
    assert called[0][2:5] == ([], 3, ["--row=club", "--seed=5"]), "settings, for Config to check"


def test_exit_codes(monkeypatch, capsys):
    def ends(what):
        def run(*_):
            if isinstance(what, int):
                return what
            raise what

        monkeypatch.setattr(ablation, "ablate", run)
        return cli.main(["ablate", "--dataset=x"])

    assert ends(1) == 1
    assert ends(InputError("mend this")) == 2 and capsys.readouterr().err == "error: mend this\n"
    assert ends(KeyboardInterrupt()) == 130 and "the same command goes on" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a fault"):
        ends(ValueError("a fault"))
    monkeypatch.setattr(ablation, "ablate", lambda *_: (_ for _ in ()).throw(InputError("mend this")))
    for given in (["--debug", "ablate", "--dataset=x"], ["ablate", "--dataset=x", "--debug"]):
        assert cli.main(given) == 2 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["ablation"], ["ablate"], ["cost", "--dataset=x", "--users=few"]])
def test_wrong_usage_ends_with_code_2(given, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(given)
    assert error.value.code == 2 and "usage: bbqrec" in capsys.readouterr().err


def test_mistakes_in_settings_are_one_line(tmp_path, capsys):
    assert cli.main(["ablate", "--dataset=nowhere", f"--data_path={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --dataset=nowhere: no file") and error.count("\n") == 1


@pytest.mark.parametrize("command", cli.COMMANDS.choices)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert error.value.code == 0 and cli.COMMANDS.choices[command].description in " ".join(shown.split())


def test_help_loads_nothing_heavy():
    code = "import sys; from recbole_bbqrec import cli; cli.PARSER.format_help(); "
    code += "print(set(sys.modules) & {'torch', 'recbole'})"
    place = cli.Path(cli.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=place)
    assert done.stdout.strip() == "set()"


def test_recommend(tiny, tmp_path, capsys):
    folder = quick_start.run(config_dict=settings(tiny, checkpoint_dir=str(tmp_path / "saved"), epochs=1))["run_dir"]
    capsys.readouterr()
    assert cli.main(["recommend", folder, "--history=i01,i05,nope", "--history=zzz", "-k", "3"]) == 0
    first, second = capsys.readouterr().out.split("after zzz")
    assert first.startswith("after i01,i05,nope (unknown, ignored: nope)\n") and "no known item" in second
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines() if line.startswith("|")][2:]
    (expected,) = recbole_bbqrec.load_bundle(folder).recommend([["i01", "i05"]], 3)
    assert rows == [[str(at + 1), expected.items[at], f"{expected.scores[at]:.4f}"] for at in range(3)]
    assert cli.main(["recommend", folder, "--history=i01", "--epochs=3"]) == 2
    assert cli.main(["recommend", str(tmp_path), "--history=i01"]) == 2
    assert "give the folder of a finished run" in capsys.readouterr().err


def test_prepare_and_run_your_own_tables(tmp_path, capsys):
    rows = [f"u{user},i{(user + step) % 8},{100 + step}" for user in range(12) for step in range(6)]
    (tmp_path / "i.csv").write_text("user,item,time\n" + "\n".join([*rows, "u1,,7"]) + "\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("item,title\n" + "".join(f"i{n},lamp {n}\n" for n in range(8)), encoding="utf-8")
    given = [f"--from={tmp_path / 'i.csv'}", f"--items={tmp_path / 't.csv'}", f"--data_path={tmp_path}"]
    assert cli.main(["prepare", "Mine", *given]) == 0
    assert "12" in capsys.readouterr().out
    assert (tmp_path / "Mine" / "Mine.inter").read_text(encoding="utf-8").count("\n") == 73
    assert (tmp_path / "Mine.bad_rows.tsv").is_file()
    assert cli.main(["prepare", "Other", *given, "--user-column=nobody"]) == 2
    assert "nobody" in capsys.readouterr().err


@pytest.mark.parametrize("characters", [10, 10**6])  # written at the end, and at once
def test_a_reader_that_leaves_early_is_no_error(characters):
    code = (
        f"from recbole_bbqrec.cli import _answer; raise SystemExit(_answer(lambda: print('x' * {characters}), False))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
