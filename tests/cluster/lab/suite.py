"""The whole of tests/cluster, in two clusters side by side: what mostly waits beside what mostly works."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from lab import cluster
from lab.places import Places

SUITE = "tests/cluster"
_APART = ("test_api_outage.py", "test_crashes.py", "test_not_starting.py", "test_scheduling.py")
"""Runs in the second cluster. None of them wants the real worker's image, which only the first one gets."""
_LAST = "test_rights.py"
"""Looks at what all others have asked of both API servers."""
_LAB = Path(__file__).parent


def run(places: Places, options: Sequence[str]) -> int:
    """Run every test with pytest's `options`; the first exit code that is not 0.

    What failed is told once more at the end, where nobody has to look for it between the parts.
    """
    apart = Places(f"{places.name}-apart")
    log = places.folder / "apart.log"
    reports = [places.folder / f"{name}.xml" for name in ("main", "apart", "rights")]
    for report in reports:
        report.unlink(missing_ok=True)
    main_options, apart_options, rights_options = ([*options, f"--junitxml={report}"] for report in reports)
    with cluster.lent(places), cluster.building(places, "worker"):
        with log.open("wb") as output:
            other = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", sys.executable, _LAB, "apart", *_files(_APART), *apart_options],
                env={**os.environ, "EVOMERGE_TEST_CLUSTER": apart.name},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        ignored = [f"--ignore={file}" for file in _files((*_APART, _LAST))]
        codes = [cluster.pytest(places, [SUITE, *ignored, *main_options]), other.wait()]
        print(f"beside it, in a cluster of their own:\n{log.read_text(errors='replace')}", flush=True)
        os.environ["EVOMERGE_TEST_AUDIT"] = str(apart.last_audit_log)
        codes.append(cluster.pytest(places, [*_files([_LAST]), *rights_options]))
    print("".join(f"{failure}\n" for report in reports for failure in _failures(report)), end="", flush=True)
    return next((code for code in codes if code), 0)


def apart(places: Places, arguments: Sequence[str]) -> int:
    """The part that runs in the second cluster."""
    with cluster.lent(places):
        return cluster.pytest(places, arguments)


def _failures(report: Path) -> list[str]:
    """A line for each test that failed, from pytest's report; one that says so where that is missing or cut off."""
    try:
        cases = list(ElementTree.parse(report).iter("testcase"))  # noqa: S314 - it is of our own pytest
    except (OSError, ElementTree.ParseError) as error:
        return [f"FAILED: pytest ended without its report ({error})"]
    return [
        f"FAILED {case.get('classname')}::{case.get('name')}: {bad.get('message', '').partition(chr(10))[0][:300]}"
        for case in cases
        for bad in (*case.findall("failure"), *case.findall("error"))
    ]


def _files(names: Sequence[str]) -> list[str]:
    return [f"{SUITE}/{name}" for name in names]
