"""The suite of faults still reaches what it breaks: a test by default, for it is run seldom."""

from tests.faults.faulty import Faulty
from tests.faults.running import Study

MOMENTS = ["fit", 0, 4, "evaluate", "record"]  # of five iterations


def test_faults_happen_at_each_moment_and_what_is_waited_for_is_written(small_set, tmp_path):
    noted = {m: f"(folder.parent / 'moments').open('a').write('{m}\\n')" for m in MOMENTS}
    faulty = Faulty(tmp_path, small_set, {"whole": noted})
    done = faulty.call()
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = faulty.folders().values()
    assert (folder.parent / "moments").read_text().split() == list(map(str, MOMENTS))

    study = Study(small_set, tmp_path / "runs", variant="whole")
    assert study.run == folder
    assert study.iterations == len(study.curve) == 5
    assert study.log.count("Starting training from iteration 0\n") == 1
    assert "detecting on 10 images, on 0 of them it was done before" in study.log
    assert study.weights
    assert set(study.figures) == {"box", "mask"}
