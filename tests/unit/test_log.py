"""The log: what survives a kill, what is refused, and that two runs' logs can be compared."""

from pathlib import Path

import pytest

from evomerge_contract.candidate import Candidate
from evomerge_contract.log import log_line, parse_line
from evomerge_operator.errors import RunError
from evomerge_operator.local.log import RunLog, read_log

IDENTITY = {"models": {"a": "sha256:1"}, "stages": [{"search": {"seed": 1}}]}
NAMES = ["a", "plain average"]


def candidate(index: int) -> Candidate:
    return Candidate(
        stage="ps",
        index=index,
        genome=(0.1 * index, 0.25),
        recipe_digest="sha256:" + "0" * 64,
        algorithm="GA/1",
        outcome="Succeeded",
        fitness=1 / (index + 1),
    )


def written(path: Path, count: int) -> bytes:
    log = RunLog(path, IDENTITY, NAMES)
    for index in range(count):
        log.append(candidate(index))
    log.close()
    return path.read_bytes()


def test_what_was_appended_is_read_back_exactly(tmp_path: Path) -> None:
    written(tmp_path / "log", 3)
    again = RunLog(tmp_path / "log", IDENTITY, NAMES)
    assert again.found == [candidate(i) for i in range(3)]
    assert again.baselines == NAMES
    assert read_log(tmp_path / "log") == again.found
    entry = parse_line((tmp_path / "log").read_bytes().splitlines(keepends=True)[0])
    assert entry == {"run": IDENTITY, "baselines": NAMES}


def test_a_log_cut_anywhere_goes_on_with_every_whole_line_and_ends_the_same(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", 3)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        path = tmp_path / "cut"
        path.write_bytes(whole[:cut])
        log = RunLog(path, IDENTITY, NAMES)
        kept = max(0, sum(end <= cut for end in ends) - 1)
        assert [c.index for c in log.found] == list(range(kept))
        for index in range(kept, 3):
            log.append(candidate(index))
        log.close()
        assert path.read_bytes() == whole


def test_a_last_line_with_a_flipped_bit_is_dropped(tmp_path: Path) -> None:
    whole = bytearray(written(tmp_path / "log", 2))
    whole[-20] ^= 1
    (tmp_path / "log").write_bytes(whole)
    assert len(RunLog(tmp_path / "log", IDENTITY, NAMES).found) == 1


def test_damage_before_the_end_is_refused_with_its_line(tmp_path: Path) -> None:
    lines = written(tmp_path / "log", 3).splitlines(keepends=True)
    lines[2] = lines[2].replace(b"0.25", b"0.75")
    (tmp_path / "log").write_bytes(b"".join(lines))
    with pytest.raises(RunError, match="line 3: the log is damaged"):
        RunLog(tmp_path / "log", IDENTITY, NAMES)


def test_another_runs_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    before = written(tmp_path / "log", 2)
    other = {"models": {"a": "sha256:1"}, "stages": [{"search": {"seed": 2}}]}
    with pytest.raises(RunError, match=r"another manifest \(differing: stages\[0\]\.search\.seed was 1, now 2\)"):
        RunLog(tmp_path / "log", other, NAMES)
    assert (tmp_path / "log").read_bytes() == before


def test_reading_where_there_is_no_log_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no log of a run here"):
        read_log(tmp_path / "log")


def test_a_file_that_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("my notes\n")
    with pytest.raises(RunError, match="line 1"):
        RunLog(tmp_path / "log", IDENTITY, NAMES)
    assert (tmp_path / "log").read_text() == "my notes\n"


def test_the_names_of_the_baselines_are_those_that_the_run_was_begun_with(tmp_path: Path) -> None:
    written(tmp_path / "log", 1)
    assert RunLog(tmp_path / "log", IDENTITY, [*NAMES, "a newer one"]).baselines == NAMES


def test_a_log_from_before_baselines_were_pinned_has_no_names_and_gets_none(tmp_path: Path) -> None:
    before = log_line({"run": IDENTITY}) + log_line({"candidate": candidate(0).wire()})
    (tmp_path / "log").write_bytes(before)
    log = RunLog(tmp_path / "log", IDENTITY, NAMES)
    assert (log.baselines, log.found) == (None, [candidate(0)])
    log.append(candidate(1))
    log.close()
    assert (tmp_path / "log").read_bytes() == before + log_line({"candidate": candidate(1).wire()})


def test_a_log_is_gone_on_with_where_the_run_has_further_stages_and_is_then_that_runs(tmp_path: Path) -> None:
    before = written(tmp_path / "log", 2)
    more = IDENTITY | {"stages": [*IDENTITY["stages"], {"search": {"seed": 2}}]}
    log = RunLog(tmp_path / "log", more, [*NAMES, "another version's baseline"])
    assert (log.found, log.baselines) == ([candidate(0), candidate(1)], NAMES)
    log.append(candidate(2))
    log.close()
    lines = (tmp_path / "log").read_bytes().splitlines(keepends=True)
    assert parse_line(lines[0]) == {"run": more, "baselines": NAMES}
    assert lines[1:3] == before.splitlines(keepends=True)[1:]
    with pytest.raises(RunError, match=r"differing: stages"):
        RunLog(tmp_path / "log", IDENTITY, NAMES)
    other = IDENTITY | {"stages": [{"search": {"seed": 3}}, {"search": {"seed": 2}}]}
    with pytest.raises(RunError, match=r"differing: stages"):
        RunLog(tmp_path / "log", other, NAMES)
