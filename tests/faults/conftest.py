"""The runs that nobody disturbed, to compare with."""

import functools

import pytest

from .running import Study


@pytest.fixture(scope="session")
def undisturbed(small_set, tmp_path_factory):
    """Of so many processes, for any test: `undisturbed(2)`."""

    @functools.cache
    def run(gpus: int, **words) -> Study:
        return Study(small_set, tmp_path_factory.mktemp("undisturbed"), gpus, **words).finish()

    return run
