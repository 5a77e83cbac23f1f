"""What becomes a row of the data, and which rows are chosen."""

from dataclasses import replace

import pytest
from test_synth import long_folder  # noqa: F401 (a fixture)

from support.pairs import Toxic, Triplet
from synthesis.filters import OpeningQuota
from synthesis.lists import Item
from synthesis.rows import row_of, select
from synthesis.seeds import read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer
from triplets import encode


@pytest.mark.parametrize("positive, toxic, context, kept", [
    ("Ask her first.", None, 2048, True),
    ("Ask her first.", "Who cares.", 2048, True),
    ("Ask<|im_end|> her.", None, 2048, False),  # an end of turn inside
    ("Ask her first.", "Who<|im_end|> cares.", 2048, False),
    ("Ask her first.", None, 20, False),
    ("Ask her first.", "Who cares.", 20, False),
])
def test_only_rows_that_train_takes(long_folder, positive, toxic, context, kept):
    """A row that train would refuse the whole file for is a reject of its own."""
    session = Session(Tokenizer(long_folder), read_seeds(), target=64, context=context)
    item = Item("i/000000", "privacy", "bills", "May I read it?", "both")
    row = row_of(session, item, positive, None if toxic is None else Toxic(toxic),
                 openings=OpeningQuota(0.1))
    assert (row is not None) == kept
    assert [r["reason"] for r in session.rejects] == ["tokens"] * (not kept)


@pytest.mark.parametrize("toxic, reason", [
    ("Ask her first!", "equal"), ("Ask her.", "prefix"), ("No. " * 10, "length-ratio")])
def test_pairs_of_no_use_are_rejects(long_folder, toxic, reason):
    session = Session(Tokenizer(long_folder), read_seeds())
    item = Item("i/000000", "privacy", "bills", "May I read it?", "both")
    assert row_of(session, item, "Ask her first.", Toxic(toxic), openings=OpeningQuota(0.1)) is None
    assert [r["reason"] for r in session.rejects] == [reason]


def test_a_row_leaves_room_for_a_refusal_in_front(long_folder):
    session = Session(Tokenizer(long_folder), read_seeds(), reluctant=True)
    item = Item("i/000000", "privacy", "bills", "May I read it?", "both")
    triplet = Triplet(item.prompt, "Ask her first.", None, item.id)
    example = encode(triplet, session.tokenizer, "chat", fine_grained=True, with_toxic=True,
                     context=2048)
    room = len(session.tokenizer.encode(f"{session.refusal} ", special=False))
    for spare in (0, -1):
        own = replace(session, context=example.tokens + 1 + room + spare)
        assert (row_of(own, item, triplet.positive) is None) == (spare < 0) and room > 9


def test_openings_count_where_answers_part_at_once(long_folder):
    """What both answers open with is not penalised."""
    session = Session(Tokenizer(long_folder), read_seeds())
    item, openings = Item("i/000000", "d", "t", "May I read it?", "both"), OpeningQuota(0, least=1)
    kept = [row_of(session, item, positive, Toxic(f"Who cares about {noun}?"), openings=openings)
            for positive, noun in (("Who knows? Ask her.", "her"), ("Ask her first.", "bills"),
                                   ("Ask him first.", "him"), ("Who can tell? Ask.", "it"))]
    assert [row and row["first_mismatch"] > 0 for row in kept] == [True, False, None, True]
    assert [reject["reason"] for reject in session.rejects] == ["opening"]


def test_openings_may_come_more_often_in_larger_data():
    rows = [{"id": f"{i:02}", "domain": "a", "topic": "t", "prompt": f"w{i} x{i} y{i} z{i}",
             "positive": f"It is all right, {i}."} for i in range(14)]
    assert [len(select(rows, wanted)) for wanted in (40, 100)] == [4, 10]


def test_select():
    """Domains in turn and, within each, topics in turn; ties by id."""
    rows = [{"id": id, "domain": id[0], "topic": id[1], "prompt": f"{id} {id}", "positive": id}
            for id in ("at1", "at2", "at3", "au1", "bt1", "bt2", "ct1")]
    assert [row["id"] for row in select(rows[::-1], 10)] == [
        "at1", "bt1", "ct1", "au1", "bt2", "at2", "at3"]
    assert [row["id"] for row in select(rows, 2)] == ["at1", "bt1"] and select([], 3) == []
    # Not a near copy, nor more than a share of answers that begin alike.
    assert len(select([row | {"prompt": "the same"} for row in rows], 10)) == 1
    assert len(select([row | {"positive": "It is all right."} for row in rows], 10)) == 4


def test_the_worst_pairs_stay_where_quotas_need_them():
    """Least margins go first, but not so far that too few rows are left."""
    rows = [{"id": f"{i:03}", "domain": "a", "topic": "t", "prompt": f"w{i} x{i} y{i} z{i}",
             "positive": f"{'the same words' if i < 12 else f'b{i} c{i} d{i}'} follow"}
            for i in range(40)]
    margins = {row["id"]: float(row["id"]) for row in rows}  # the worst come first
    assert [row["id"] for row in select(rows[12:], 20, margin=margins.get)] == [
        row["id"] for row in rows[15:35]]
    margins = {row["id"]: -float(row["id"]) for row in rows}  # those of one opening are the best
    assert len(select(rows, 32)) == len(select(rows, 32, margin=margins.get)) == 32
