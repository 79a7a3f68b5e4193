"""`bbqrec recommend` and `bbqrec items` with words, titles and new items."""

import recbole_bbqrec
from recbole_bbqrec import cli


def test_items_by_words_and_new_items(small, tmp_path, capsys):
    folder = small.folder

    def shown(*given, code=0):
        assert cli.main([given[0], *given[1:]]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    (row,) = shown("items", "find", str(folder), "lamp", "number", "4").splitlines()[2:]
    assert row == "| i04    | red lamp number 4 |"
    assert "nothing: no title has all these words" in shown("items", "find", str(folder), "purple")
    by_words = shown("recommend", str(folder), "--history=lamp number 4, i07", "-k", "3")
    by_tokens = shown("recommend", str(folder), "--history=i04,i07", "-k", "3")
    assert by_words.splitlines()[1:] == by_tokens.splitlines()[1:] and "number" in by_tokens
    error = shown("recommend", str(folder), "--history=green", code=2)
    assert error.startswith("error: --history: 'green' is in several titles, say which: i17  green ball number 17, i")
    assert error.count("number") <= 10 and error.count("\n") == 1
    assert "; and more" in shown("recommend", str(folder), "--history=number", code=2)
    (tmp_path / "deny.txt").write_text("\n".join(recbole_bbqrec.load_bundle(folder).item_tokens[3:]), encoding="utf-8")
    denied = shown("recommend", str(folder), "--history=i04", f"--deny={tmp_path / 'deny.txt'}", "--explain")
    assert len(denied.splitlines()) <= 5 and "because of" in denied
    rows = 'new,"red tent, number 99",Acme\nbig,big red lamp number 4,\n'
    (tmp_path / "new.csv").write_text(f"item_id,title,brand\n{rows}", encoding="utf-8")
    added = shown("items", "add", str(folder), str(tmp_path / "new.csv"))
    assert added == f"{folder}: 2 items added, generation 1\n"
    assert "new" in shown("items", "find", str(folder), "99")
    assert "red tent, number 99" in shown("recommend", str(folder), "--history=i04", "-k", "100")
    again = shown("recommend", str(folder), "--history=red lamp number 4", "-k", "3")
    assert again.startswith("after red lamp number 4\n| rank"), "the title itself, though it is in a longer one too"
    assert "'new' is in the catalogue already" in shown("items", "add", str(folder), str(tmp_path / "new.csv"), code=2)
    assert "found 2 files" in shown("items", "add", str(folder), "a.csv", "b.csv", code=2)
