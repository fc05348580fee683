"""A study as one archive to hand on: records, configs, logs, predictions, their ground truth,
tables, plots, report, and the commands that make it again."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from experiments import ROOT
from experiments.costs import environment
from experiments.errors import UserError
from experiments.json_files import write_json
from experiments.records import RECORD

from . import provenance, report, report_words, tables
from .results import Results

_LEFT_OUT = ("*.pth", "job", "tensorboard", ".*")  # weights, output of processes
_PAGE = """# {title}

{question}

To look at it: `report/report.html` in a browser, `{home}/table.md`.
To work with it, in a clone of the suite:

```
git checkout {commit}
unzip {archive}            # here: adds {home} and what its rows share with other studies
python -m analysis study {home}
python -m analysis report {home}
```

Its runs count as done there; weights are not in it. To make it again, from nothing:

```
{commands}
```

{provenance}
"""


def write(found: Results, out: Path) -> Path:
    """Write `<out>/<scale>-<study>.zip`, whose paths are relative to the clone it is opened in.

    Args:
        found: whose tables and plots lie in its folder, as `python -m analysis study` writes them.

    Raises:
        UserError: no run is finished, or its ground truth is not there.
    """
    if found.records.empty:
        raise UserError(f"no run of {found.folder} is finished: there is nothing to bundle yet")
    scale, study = found.folder.absolute().parts[-2:]
    name, home = f"{scale}-{study}", Path("runs") / scale / study
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as scratch:
        top = Path(scratch).absolute()
        (top / home).mkdir(parents=True)
        for path in found.folder.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy(path, top / home)
        runs = []
        for path in map(Path, found.records["path"]):
            beside = os.path.relpath(path.parent, found.folder)  # of another study, maybe
            runs.append(Path(os.path.normpath(top / home / beside)))
            shutil.copytree(path.parent, runs[-1], ignore=shutil.ignore_patterns(*_LEFT_OUT))
            _move_truth(runs[-1] / RECORD, top, home.parent)
        with contextlib.chdir(top):
            report.write([home], Path("report"), found.delta)
        for run in runs:
            for path in (run / RECORD, run / "config.yaml", run / "log.txt"):
                if path.is_file():
                    path.write_text(path.read_text().replace(f"{ROOT}/", ""))
        (top / f"{name}.md").write_text(_page(found, home, f"{name}.zip"))
        return Path(shutil.make_archive(str(out.absolute() / name), "zip", top))


def _move_truth(path: Path, top: Path, place: Path) -> None:
    """Put what a run was scored on into `place`, and let its record say so."""
    record = json.loads(path.read_text())
    truth = Path(record["data"]["val"])
    if not truth.is_file():
        raise UserError(f"no ground truth at {truth}, which {path.parent.name} was scored on")
    moved = place / f"truth-{record['data']['digest']}{truth.suffix}"
    if not (top / moved).exists():
        shutil.copy(truth, top / moved)
    record["data"]["val"] = str(moved)
    write_json(path, record)


def _page(found: Results, home: Path, archive: str) -> str:
    commands = report_words.commands(found.manifest)
    return _PAGE.format(
        title=tables.title(found),
        question=found.manifest["question"],
        home=home,
        archive=archive,
        commit=environment.git_commit().removesuffix("-dirty") or "<its commit>",
        commands="\n".join(f"{command}  # {what}" for what, command in commands),
        provenance="\n".join(f"- {line}" for line in provenance.of_study(found)),
    )
