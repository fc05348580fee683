"""Looks: what each may err, when each is, and the file that they are kept in."""

import pytest

from experiments.errors import UserError
from experiments.records import looks


def test_all_looks_there_can_be_err_in_five_percent():
    shares = [looks.error(look) for look in range(1, 2000)]
    assert sum(shares) == pytest.approx(0.05, abs=1e-5)
    assert sum(shares) < 0.05
    assert shares == sorted(shares, reverse=True)
    # What nobody adds seeds to pays little.
    assert shares[0] == 0.04


def test_looks_are_further_and_further_apart():
    assert looks.seeds_of(8) == [3, 4, 5, 6, 8, 10, 13, 17]
    assert looks.following(1) == 2


def test_what_is_kept_is_read(tmp_path):
    assert looks.read(tmp_path) == []
    kept = [dict(date="2026", delta=2.0, runs={"a": ["a-0"]}, said={})]
    looks.write(tmp_path, kept)
    assert looks.read(tmp_path) == kept
    (tmp_path / looks.FILE).write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*looks\.json"):
        looks.read(tmp_path)
