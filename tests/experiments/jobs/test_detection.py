"""What a detection run tells while it works."""

from experiments import records
from experiments.jobs import detection


def test_evaluation_reports_first_last_and_now_and_then(tmp_path):
    report = detection._report_evaluation(tmp_path)
    for done in range(1, 51):
        report(done, 50)
    lines = records.metrics(tmp_path)
    assert [line["evaluated"] for line in lines] == [1, 50]
    assert lines[1]["images_per_second"] > 0
    assert lines[1]["eta_seconds"] == 0
