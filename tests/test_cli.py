import csv
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import settings

import recbole_bbqrec
from recbole_bbqrec import cli, quick_start
from recbole_bbqrec.cli.parser import COMMANDS
from recbole_bbqrec.errors import InputError
from recbole_bbqrec.experiments import ablation, cost, item_bytes
from recbole_bbqrec.serving.lists import known_histories


@pytest.fixture
def called(monkeypatch):
    """What the commands hand over to their parts."""
    calls = []
    monkeypatch.setattr(ablation, "ablate", lambda *given: calls.append(("ablate", *given)) or 0)
    monkeypatch.setattr(ablation, "remake", lambda *given: calls.append(("remake", *given)))
    monkeypatch.setattr(cost, "cost", lambda *given: calls.append(("cost", *given)))
    monkeypatch.setattr(item_bytes, "study", lambda *given: calls.append(("bytes", *given)) or 1)
    return calls


def test_ablate(called):
    assert cli.main(["ablate", "--dataset=Beauty"]) == 0
    given = [
        "--seeds=1",
        "--rows=full,no-codes",
        "--final",
        "--results=out",
        "--form=codes",
        "--epochs=3",
        "--data_path=/d",
    ]
    assert cli.main(["ablate", "--dataset=Beauty", *given]) == 0
    assert called == [
        ("ablate", "Beauty", [], 3, [], False, Path("results"), "full"),
        ("ablate", "Beauty", ["full", "no-codes"], 1, ["--epochs=3", "--data_path=/d"], True, Path("out"), "codes"),
    ]


def test_table_only(called, capsys):
    assert cli.main(["ablate", "--dataset=Beauty", "--table-only", "--final"]) == 0
    assert called == [("remake", "Beauty", True, Path("results"), "full")]
    assert cli.main(["ablate", "--dataset=Beauty", "--table-only", "--epochs=3"]) == 2
    assert capsys.readouterr().err.startswith("error: --table-only reads records alone")


def test_cost(called):
    assert cli.main(["cost", "--dataset=Sports", "--users=7", "--rounds=2", "--n_layers=1"]) == 0
    assert called == [("cost", "Sports", 7, 2, ["--n_layers=1"], Path("results"))]


def test_cost_of_tables(called, capsys):
    assert cli.main(["cost", "--dataset=Sports"]) == 0
    assert cli.main(["cost", "--dataset=Sports", "--table", "--n_layers=1"]) == 1, "the exit code of its runs"
    assert cli.main(["cost", "--dataset=Sports", "--table", "--seeds=3", "--results=out"]) == 1
    assert called == [
        ("cost", "Sports", 1000, 5, [], Path("results")),
        ("bytes", "Sports", 1, ["--n_layers=1"], Path("results")),
        ("bytes", "Sports", 3, [], Path("out")),
    ]
    assert cli.main(["cost", "--dataset=Sports", "--seeds=3"]) == 2
    assert cli.main(["cost", "--dataset=Sports", "--table", "--users=0"]) == 2
    assert len(called) == 3
    said = capsys.readouterr().err
    assert "--seeds: goes with --table" in said and "--users: goes without --table" in said


def test_a_mistyped_option_is_not_taken_for_another(called):
    cli.main(["ablate", "--dataset=Beauty", "--row=independence", "--seed=5"])
    assert called[0][2:5] == ([], 3, ["--row=independence", "--seed=5"]), "settings, for Config to check"


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
    assert ends(KeyboardInterrupt()) == 130 and "same command again" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a fault"):
        ends(ValueError("a fault"))
    monkeypatch.setattr(ablation, "ablate", lambda *_: (_ for _ in ()).throw(InputError("mend this")))
    for given in (["--debug", "ablate", "--dataset=x"], ["ablate", "--dataset=x", "--debug"]):
        assert cli.main(given) == 2 and "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ablate", "the following arguments are required: --dataset; bbqrec ablate --help lists the options"),
        ("prepare X --user-core=many", "argument --user-core: invalid int value: 'many'; bbqrec prepare --help lists"),
        ("--debug", "the following arguments are required: command; bbqrec --help lists the options"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_one_line(given, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(given.split())
    said = capsys.readouterr().err
    assert error.value.code == 2 and said.startswith(f"error: {message}") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("prepare X --itms a.csv", "argument '--itms': did you mean --items; bbqrec prepare --help lists its options"),
        ("prepare X --user_core=3", "argument '--user_core=3': did you mean --user-core; "),
        ("images X --epochs=3", "argument '--epochs=3': images takes no settings; bbqrec images --help lists"),
    ],
)
def test_a_mistyped_option_is_told_the_nearest(given, message, capsys):
    assert cli.main(given.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_mistakes_in_settings_are_one_line(tmp_path, capsys):
    assert cli.main(["ablate", "--dataset=nowhere", f"--data_path={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --dataset=nowhere: no file") and error.count("\n") == 1


def test_a_mistyped_command_is_told_the_nearest_and_none_is_helped(capsys):
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: trian: no such command; did you mean train; bbqrec --help lists them\n"
    assert cli.main(["xyzzy"]) == 2
    assert capsys.readouterr().err == "error: xyzzy: no such command; bbqrec --help lists them\n"
    assert cli.main([]) == 0 and "bbqrec [-h]" in capsys.readouterr().out


def test_settings_of_a_run_in_python_are_a_list():
    with pytest.raises(InputError, match="run: found a text, expected a list, such as"):
        recbole_bbqrec.run("--model=BBQRec")


@pytest.mark.parametrize("command", COMMANDS.choices)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert error.value.code == 0 and COMMANDS.choices[command].description in " ".join(shown.split())


def test_help_loads_nothing_heavy():
    code = "import sys; from recbole_bbqrec import cli; cli.PARSER.format_help(); "
    code += "print(set(sys.modules) & {'torch', 'recbole'})"
    place = Path(recbole_bbqrec.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=place)
    assert done.stdout.strip() == "set()"


@pytest.fixture(scope="module")
def stock_run(tiny, tmp_path_factory):
    """Folder of a finished run."""
    place = str(tmp_path_factory.mktemp("saved"))
    return quick_start.run(config_dict=settings(tiny, "Pop", checkpoint_dir=place))["run_dir"]


def test_recommend(tiny, tmp_path, capsys):
    folder = quick_start.run(config_dict=settings(tiny, checkpoint_dir=str(tmp_path / "saved"), epochs=1))["run_dir"]
    capsys.readouterr()
    assert cli.main(["recommend", folder, "--history=i01,i05,nope", "--history=zzz", "-k", "3"]) == 0
    first, second = capsys.readouterr().out.split("after zzz")
    assert first.startswith("after i01,i05,nope (unknown, ignored: nope)\n") and "no known item" in second
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in first.splitlines() if line.startswith("|")][2:]
    (expected,) = recbole_bbqrec.load_bundle(folder).recommend([["i01", "i05"]], 3)
    bundle = recbole_bbqrec.load_bundle(folder)
    shown = [(item, bundle.title(item), f"{score:.4f}") for item, score in zip(*expected[:2], strict=True)]
    assert rows == [[str(at), *cells] for at, cells in enumerate(shown, 1)] and all(row[2] for row in rows)
    assert cli.main(["recommend", folder, "--history=i01", "--epochs=3"]) == 2
    assert cli.main(["recommend", str(tmp_path), "--history=i01"]) == 2
    assert "give the folder of a finished run" in capsys.readouterr().err
    (tmp_path / "weights.safetensors").touch()
    assert cli.main(["recommend", str(tmp_path), "--history=i01"]) == 2
    assert "its model needs its data set, see load_data_and_model" in capsys.readouterr().err
    assert cli.main(["recommend", folder, "--history= i01,  i05 ,", "-k", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == first.splitlines()[1:], "blanks after commas"


def test_recommend_to_users(tiny, tmp_path, capsys):
    given = settings(tiny, "SASRec", checkpoint_dir=str(tmp_path / "saved"), epochs=1)
    folder = quick_start.run(config_dict=given)["run_dir"]
    capsys.readouterr()
    bundle, allow = recbole_bbqrec.load_bundle(folder), tmp_path / "allow.txt"
    histories = known_histories(bundle)
    allow.write_text("i03\n\n i07 \ni09\nnope\n", encoding="utf-8")

    def lists(*options):
        assert cli.main(["recommend", folder, f"--out={tmp_path / 'lists.csv'}", *options]) == 0
        with open(tmp_path / "lists.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert capsys.readouterr().out == f"{tmp_path / 'lists.csv'}: {len(rows)} rows for {len({*histories})} users\n"
        found = {user: [] for user in histories}
        for row in rows:
            found[row["user"]].append(row["item"])
            assert int(row["rank"]) == len(found[row["user"]])
        return list(found.values())

    assert lists("--users=all") == [each.items for each in bundle.recommend(histories.values())]
    expected = bundle.recommend(histories.values(), k=2, exclude_seen=False, allow=["i03", "i07", "i09"])
    options = ["--users=all", "-k", "2", "--keep-seen", f"--allow={allow}", f"--data_path={tiny}"]
    assert lists(*options) == [each.items for each in expected]
    assert cli.main(["recommend", folder, "--users=u03, u01", "-k", "2"]) == 0
    first, second = capsys.readouterr().out.split("user u01")
    for user, shown in (("u03", first.removeprefix("user u03\n")), ("u01", second)):
        cells = [line.split("|")[2].strip() for line in shown.splitlines() if line.startswith("|")][2:]
        assert cells == bundle.recommend([histories[user]], 2)[0].items


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --history=ITEM,ITEM or --users=all"),
        (["--users="], "give either --history=ITEM,ITEM or --users=all"),
        (["--history=i01", "--users=all"], "give either --history=ITEM,ITEM or --users=all"),
        (["--history=i01", "--out=l.csv"], "--out: goes with --users"),
        (["--history=i01", "--data_path=data"], "--data_path: goes with --users"),
        (["--history=i01", "-k", "0"], "k: found 0, expected a whole number"),
        (["--history", "i01,", "i02"], "argument 'i02': not expected; a value with blanks needs quotes"),
        (["--history=i01", "--allow=nowhere.txt"], "nowhere.txt: No such file or directory; expected a text file"),
        (["--users=all"], "--users: 60 users, at most 20 are shown; --out=lists.csv writes a table"),
        (["--users=u01,me"], "--users: me not among the 60 users of tiny, such as u00"),
        (["--users=all", "--out=lists.xls"], "lists.xls: found the ending '.xls', expected .csv or .parquet"),
        (["--users=all", "--data_path=nowhere"], "--dataset=tiny: no file nowhere/tiny/tiny.inter"),
    ],
)
def test_what_recommend_cannot_do_is_one_line(stock_run, capsys, options, message):
    assert cli.main(["recommend", stock_run, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") or error.startswith(f"error: recommend: {message}")
    assert error.count("\n") == 1


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


def test_train_takes_settings_as_the_script_does(tiny, tmp_path, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(quick_start, "run", seen.append)
    assert cli.main(["train", "-m", "Pop", "--final", "--epochs", "1"]) == 0
    monkeypatch.setattr(sys, "argv", ["bbqrec", "train", "--model=Pop"])
    assert cli.main() == 0
    assert seen == [["-m", "Pop", "--final", "--epochs", "1"], ["--model=Pop"]]
    for given in (["train", "Pop", "--debug"], ["--debug", "train", "Pop"]):
        monkeypatch.undo()
        assert cli.main(given) == 2
        assert "Traceback" in (said := capsys.readouterr().err) and "error: argument 'Pop'" in said


@pytest.mark.parametrize("characters", [10, 10**6])  # written at the end, and at once
def test_a_reader_that_leaves_early_is_no_error(characters):
    code = f"from recbole_bbqrec.cli import _answer; exit(_answer(lambda: print('x' * {characters}), (), False))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_file_with_a_key_that_is_unknown_or_unused_is_named(tiny, tmp_path, capsys):
    file, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    file.write_text("hiden_size: 32")
    other.write_text("n_layers: 1")
    given = [f"--data_path={tiny}", "--dataset=tiny", "--epochs=1", f"--config_files={file} {other}"]
    for command in (["train", "--model=BBQRec"], ["train", "--model=BBQRec,SASRecPlus"], ["ablate"]):
        assert cli.main([*command, *given]) == 2
        assert capsys.readouterr().err.startswith(f"error: {file}: unknown key 'hiden_size'")
    assert cli.main(["train", "--model=BBQRec", *given, "--hiden_size=64"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown key 'hiden_size'"), "the command line's own"
