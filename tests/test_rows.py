"""What becomes a row of the data, and which rows are chosen."""

import pytest
from test_synth import long_folder  # noqa: F401 (a fixture)

from support.pairs import Toxic
from synthesis.filters import OpeningQuota
from synthesis.lists import Item
from synthesis.rows import row_of, select
from synthesis.seeds import read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer


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
