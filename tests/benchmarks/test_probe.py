"""The benchmark of frozen probes: what is computed once is told from what each run takes."""

import pytest

from benchmarks import probe

TINY = {
    "train.max_iter": 2,
    "dataloader.image_size": 128,
    "model.backbone.img_size": 128,
    "dataloader.train.num_workers": 0,
    "dataloader.test.num_workers": 0,
}


@pytest.mark.slow
def test_what_is_measured():
    table = probe.measure((10, 3), TINY)
    assert tuple(table.row) == probe.ROWS
    seconds = dict(zip(table.row, table.seconds, strict=True))
    assert min(seconds.values()) > 0
    assert seconds["its training"] < seconds["another run on them"]
    assert "13 images, 0.00 GB" in set(table.what)
    assert "2 steps of 8 images" in probe.shown(table)
