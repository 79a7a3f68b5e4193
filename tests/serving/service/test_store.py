"""Events are kept once, in order, by SQLite and PostgreSQL alike; what went wrong is one clear error."""

import threading

import pytest
import sqlalchemy as sa

from recbole_bbqrec.errors import InputError
from recbole_bbqrec.serving.service.batching import OverloadedError
from recbole_bbqrec.serving.service.store import Event, Store


def test_a_history_is_in_the_order_of_time(address):
    store = Store(address)
    store.add([Event("u", "late", 30.0), Event("u", "b", 20.0), Event("u", "a", 20.0), Event("v", "x", 1.0)])
    store.add([Event("u", "early", 10.0)])
    assert store.histories(["u", "nobody", "v"], 10) == [["early", "b", "a", "late"], [], ["x"]]
    assert store.histories(["u"], 2) == [["a", "late"]]
    store.close()
    assert Store(address).histories(["u"], 1) == [["late"]]


def test_what_is_sent_again_is_kept_once(address):
    store, sent = Store(address), [Event("u", "a", 1.5), Event("u", "b", 1.5)]
    store.add(sent)
    store.add([*sent, Event("u", "a", 2.5), Event("u", "a", 2.5)])
    assert store.histories(["u"], 10) == [["a", "b", "a"]]
    store.close()


def test_names_are_data(address):
    store, name = Store(address), "'; DROP TABLE bbqrec_events; --"
    store.add([Event(name, "ü☃😀", 1.0)])
    assert store.histories([name], 10) == [["ü☃😀"]]
    store.close()


def test_two_writers_lose_nothing(address):
    """Two stores, as two workers have them, write the same and other events at once."""
    stores, wrong = [Store(address), Store(address)], []

    def write(store, own):
        try:
            for number in range(25):
                both = [Event("both", f"i{at}", float(at)) for at in (number, number + 1)]
                store.add([Event(own, f"i{number}", float(number)), *(both if own == "one" else both[::-1])])
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=pair) for pair in zip(stores, ("one", "two"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = [len(items) for items in stores[0].histories(["one", "two", "both"], 100)]
    assert wrong == [] and counts == [25, 25, 26]
    for store in stores:
        store.close()


def test_a_store_of_another_version_is_refused(address):
    store = Store(address)
    with store._engine.begin() as connection:
        connection.execute(sa.text("UPDATE bbqrec_schema SET version = 99"))
    store.close()
    with pytest.raises(InputError, match="version 99, expected 1"):
        Store(address)


def test_places_that_are_no_store(tmp_path):
    (tmp_path / "text").write_text("no database at all" * 100)
    for place, why in {
        str(tmp_path / "nowhere" / "file"): "no such folder",
        str(tmp_path): "unable to open",
        str(tmp_path / "text"): "not a database",
        "mysql://host/name": "found mysql://",
        "postgresql://host:port/": "no address",
        f"postgresql://u:secret@/x?host={tmp_path}": "connection",
    }.items():
        with pytest.raises(InputError, match=why) as found:
            Store(place)
        assert "\n" not in str(found.value) and "secret" not in str(found.value)


def test_a_store_that_breaks_is_told_and_works_again(address):
    """Connections that have died are replaced; a table that is gone is an overload, not an acknowledgement."""
    store = Store(address)
    store.add([Event("u", "a", 1.0)])
    if address.startswith("postgresql"):
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        other = sa.create_engine(address.replace("postgresql:", "postgresql+psycopg:"))
        with other.connect() as connection:
            connection.execute(sa.text(f"{end} AND datname = current_database()"))
        other.dispose()
        store.add([Event("u", "b", 2.0)])
        assert store.histories(["u"], 9) == [["a", "b"]]
    else:
        writer = sa.create_engine(f"sqlite:///{address}")
        with store._engine.connect() as connection:  # the pool's: `add` gets the same one
            connection.execute(sa.text("PRAGMA busy_timeout=1"))
        with writer.connect() as connection:
            connection.execute(sa.text("BEGIN IMMEDIATE"))
            with pytest.raises(OverloadedError, match="locked"):
                store.add([Event("u", "b", 2.0)])
        writer.dispose()
        store.add([Event("u", "b", 2.0)])
        assert store.histories(["u"], 9) == [["a", "b"]]
    store.close()
