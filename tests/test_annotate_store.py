"""Answers on disk and who gets what next: nothing lost, doubled or crossed, whatever happens in between."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanmask.annotate.dealing import Dealer
from leanmask.annotate.statistics import measure
from leanmask.annotate.store import VERSION, Answer, Given, Lease, Store
from leanmask.annotate.tasks import Unit
from leanmask.errors import DataError, RunError

FINGERPRINT = {"images": "a", "objects": "b", "classes": "c"}


def answer(number: int, position: int = 0, value: str = "object", who: str = "anna", **given: object) -> Answer:
    values = {"id": f"answer-{number:06}", "kind": "points", "target": 7, "position": position, "value": value}
    return Answer(**{**values, "annotator": who, "seconds": 0.5, **given})  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store.open(tmp_path / "s" / "train.sqlite", FINGERPRINT)
    yield found
    found.close()


def test_an_answer_sent_twice_is_saved_once(store: Store) -> None:
    assert store.save(answer(1)) == "saved"
    assert store.save(answer(1)) == "known"
    assert store.save(answer(2)) == "conflict"  # the same question again, from another tab
    assert store.save(answer(3, who="ben")) == "saved"
    assert [item.id for item in store.answers()] == ["answer-000001", "answer-000003"]


def test_undo_frees_the_question_and_stays_undone(store: Store) -> None:
    store.save(answer(1))
    assert store.undo("answer-000001", "ben") is None  # not his
    assert store.undo("answer-000001", "anna").value == "object"
    assert not store.stands("answer-000001")
    assert store.save(answer(1)) == "known"  # a late copy does not bring it back
    assert store.save(answer(2, value="background")) == "saved"
    assert store.undo("answer-000001", "anna") is not None
    assert [item.value for item in store.answers()] == ["background"]


def test_what_is_saved_is_there_after_opening_again(tmp_path: Path) -> None:
    path = tmp_path / "train.sqlite"
    store = Store.open(path, FINGERPRINT)
    store.save(answer(1, detail={"box": [1, 2, 3, 4]}, answered_at=123.5))
    store.lend([Lease("points", 7, "anna", "tab-00000001", 1e12), Lease("points", 8, "ben", "tab-00000002", 5.0)])
    store.close()
    again = Store.open(path, FINGERPRINT)
    (item,) = again.answers()
    assert (item.detail, item.answered_at) == ({"box": [1, 2, 3, 4]}, 123.5)
    assert [lease.target for lease in again.leases(now=10.0)] == [7]
    assert again.given() == [Given(("points", 7), "anna", 1, False)]
    again.close()


def test_answers_about_another_data_set_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.sqlite"
    store = Store.open(path, FINGERPRINT)
    store.save(answer(1))
    store.close()
    with pytest.raises(DataError, match="another data set: the objects differ"):
        Store.open(path, {**FINGERPRINT, "objects": "x"})
    again = Store.open(path, FINGERPRINT)
    assert [item.id for item in again.answers()] == ["answer-000001"]
    again.close()


def test_an_older_version_is_migrated_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.sqlite"
    Store.open(path, FINGERPRINT).close()
    with sqlite3.connect(path) as connection:  # as version 1 had it: no details
        connection.execute("ALTER TABLE answers DROP COLUMN detail")
        connection.execute(
            "INSERT INTO answers VALUES ('answer-000009', 'points', 7, 0, 'object', 'anna', 0.5, 1.0, NULL)"
        )
        connection.execute("PRAGMA user_version = 1")
    store = Store.open(path, FINGERPRINT)
    assert [item.id for item in store.answers()] == ["answer-000009"]
    assert store.save(answer(10, position=1, detail={"category_id": 3})) == "saved"
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(DataError, match="from a newer leanmask"):
        Store.open(path, FINGERPRINT)


def test_files_that_are_no_store_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("dear diary" * 200)
    with pytest.raises(DataError, match="holds no answers"):
        Store.open(tmp_path / "text.sqlite", FINGERPRINT)
    assert (tmp_path / "text.sqlite").read_text() == "dear diary" * 200
    with sqlite3.connect(tmp_path / "other.sqlite") as connection:
        connection.execute("CREATE TABLE recipes (name)")
    with pytest.raises(DataError, match="something else"):
        Store.open(tmp_path / "other.sqlite", FINGERPRINT)
    with pytest.raises(RunError, match="cannot open"):
        Store.open(tmp_path / "text.sqlite" / "below", FINGERPRINT)


WRITER = """
import sys
from leanmask.annotate.store import Answer, Store
store = Store.open(__import__("pathlib").Path(sys.argv[1]), {"images": "a", "objects": "b", "classes": "c"})
for number in range(100000):
    store.save(Answer(f"answer-{number:06}", "points", number, 0, "object", "anna", 0.5))
    print(number, flush=True)
"""


def test_kill_9_loses_no_answer_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "train.sqlite"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(60)]
    process.send_signal(signal.SIGKILL)
    told += [int(line) for line in process.stdout]
    process.wait()
    process.stdout.close()
    store = Store.open(path, FINGERPRINT)
    saved = [item.target for item in store.answers()]
    store.close()
    assert saved[: len(told)] == told
    assert len(saved) <= len(told) + 1  # the one in flight


def units(count: int, answers: int = 2, needed: int = 1) -> list[Unit]:
    return [Unit("points", number, answers, needed) for number in range(count)]


def test_people_get_different_units_until_leases_expire() -> None:
    dealer = Dealer(units(5), lease_seconds=100)
    assert dealer.claim("anna", "tab-a", 2, now=0) == [0, 1]
    assert dealer.claim("ben", "tab-b", 2, now=1) == [2, 3]
    assert dealer.claim("anna", "tab-a", 2, now=2) == [0, 1]  # the same tab goes on with what it has
    assert dealer.claim("anna", "tab-c", 5, now=3) == [4]  # another tab of hers does not get them twice
    assert dealer.claim("ben", "tab-b", 9, now=90) == [2, 3]
    assert sorted(dealer.claim("ben", "tab-b", 9, now=103.5)) == [0, 1, 2, 3, 4]


def test_a_half_done_unit_goes_back_to_whoever_began_it() -> None:
    dealer = Dealer(units(4), lease_seconds=100)
    dealer.claim("anna", "tab-a", 3, now=0)
    dealer.note(1, "anna")
    assert dealer.claim("anna", "tab-z", 1, now=500) == [1]


def test_overlap_goes_to_another_person() -> None:
    dealer = Dealer(units(2, needed=2), lease_seconds=100)
    for number in dealer.claim("anna", "tab-a", 2, now=0):
        dealer.note(number, "anna", 2)
    assert dealer.claim("anna", "tab-a", 5, now=1) == []
    assert dealer.units_done == 0
    assert dealer.answers_left == 4
    for number in dealer.claim("ben", "tab-b", 5, now=2):
        dealer.note(number, "ben", 2)
    assert (dealer.units_done, dealer.answers_left) == (2, 0)


def test_undo_reopens_a_finished_unit() -> None:
    dealer = Dealer(units(1), lease_seconds=100)
    dealer.claim("anna", "tab-a", 1, now=0)
    dealer.note(0, "anna", 2)
    assert (dealer.units_done, dealer.answers_left) == (1, 0)
    dealer.reopen(0, "anna", "tab-a", now=1)
    assert (dealer.units_done, dealer.answers_left) == (0, 1)
    assert dealer.claim("ben", "tab-b", 1, now=2) == []
    dealer.note(0, "anna")
    assert (dealer.units_done, dealer.answers_left) == (1, 0)


def test_units_that_cannot_be_shown_are_dealt_no_more() -> None:
    dealer = Dealer(units(2), lease_seconds=100)
    dealer.claim("anna", "tab-a", 1, now=0)
    dealer.drop(0)
    assert dealer.claim("anna", "tab-a", 5, now=1) == [1]
    assert dealer.answers_left == 2


def test_a_restarted_server_goes_on() -> None:
    given = [Given(("points", 0), "anna", 2, False), Given(("points", 1), "anna", 1, False)]
    given.append(Given(("poems", 9), "ben", 1, False))  # of another kind of session
    lease = [Lease("points", 2, "ben", "tab-b", 1000.0)]
    dealer = Dealer(units(4), lease_seconds=100)
    dealer.restore(given, lease)
    assert (dealer.units_done, dealer.answers_left) == (1, 5)
    assert dealer.claim("anna", "tab-a", 9, now=10) == [1, 3]
    assert dealer.claim("ben", "tab-b", 9, now=11) == [2]


ACTIONS = ("claim", "answer", "finish", "wait", "undo")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(ACTIONS)), max_size=60),
    st.integers(1, 2),
)
def test_whatever_people_do_no_unit_is_lent_or_done_too_often(actions: list[tuple[str, str]], needed: int) -> None:
    dealer, now = Dealer(units(4, answers=2, needed=needed), lease_seconds=10), 0.0
    held: dict[str, list[int]] = {who: [] for who in "abc"}
    given: dict[tuple[int, str], int] = {}
    for who, action in actions:
        now += 1
        if action == "claim":
            held[who] = dealer.claim(who, f"tab-{who}", 2, now)
            assert len(set(held[who])) == len(held[who])
        elif action == "wait":
            now += 20
        elif held[who] and action in ("answer", "finish") and given.get((held[who][0], who), 0) < 2:
            step = 1 if action == "answer" else 2 - given.get((held[who][0], who), 0)
            dealer.note(held[who][0], who, step)
            given[held[who][0], who] = given.get((held[who][0], who), 0) + step
        elif held[who] and action == "undo" and given.get((held[who][0], who)):
            dealer.reopen(held[who][0], who, f"tab-{who}", now)
            given[held[who][0], who] -= 1
        done = [sum(count == 2 for (number, _), count in given.items() if number == unit) for unit in range(4)]
        assert dealer.units_done == sum(count >= needed for count in done)
        assert dealer.answers_left >= 0


def test_speed_and_agreement() -> None:
    pairs = [("object", "object")] * 6 + [("background", "background")] * 2 + [("object", "background")] * 2
    given = []
    for number, (one, other) in enumerate(pairs):
        given.append(answer(2 * number, value=one, target=number, seconds=1.0))
        given.append(answer(2 * number + 1, value=other, target=number, who="ben", seconds=3.0))
    given.append(answer(90, value="unsure", target=50, seconds=500.0))  # a pause, and nothing to agree on
    found = measure(given)
    anna, ben = found.speed
    assert (anna.answers, anna.unsure, anna.median_seconds, ben.median_seconds) == (11, 1, 1.0, 3.0)
    (agreement,) = found.agreement
    assert (agreement.pairs, agreement.share) == (10, 0.8)
    # Scott's pi by hand: object 14 of 20 answers, so chance agrees in 0.7^2 + 0.3^2 = 0.58.
    assert agreement.kappa == pytest.approx((0.8 - 0.58) / 0.42)
    assert "80.0 % of 10 pairs" in found.to_text()
    assert measure([]).to_text() == "nobody has answered anything yet"
