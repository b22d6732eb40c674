"""Data sets: what is read, and what is said about lines that cannot be."""

import json
from pathlib import Path

import pytest

from evomerge_contract.manifest import Jsonl, Objective, SplitName
from evomerge_contract.metrics import MetricName
from evomerge_worker.errors import InputError
from evomerge_worker.evaluate.choices import MultipleChoice
from evomerge_worker.evaluate.evaluators import load_items
from evomerge_worker.evaluate.exact_match import Question
from evomerge_worker.evaluate.items import Item, overlap
from evomerge_worker.evaluate.perplexity import Text

WHERE = "objectives.o.search"


def objective(metric: MetricName) -> Objective:
    return Objective(name="o", jsonl=Jsonl(search="a", select="b", test="c"), metric=metric)


def load(folder: Path, metric: MetricName, content: str | bytes) -> list[Item]:
    path = folder / "items.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_items(path, objective(metric), WHERE)


def messages(folder: Path, metric: MetricName, content: str | bytes) -> list[str]:
    with pytest.raises(InputError) as caught:
        load(folder, metric, content)
    assert {problem.path for problem in caught.value.problems} == {WHERE}
    return [problem.message for problem in caught.value.problems]


def test_every_metric_reads_its_own_fields(tmp_path: Path) -> None:
    assert load(tmp_path, "exact_match", '{"prompt": "1+1=", "answer": " 2 ", "skill": "sums"}\n') == [
        Question(1, "1+1=", ("2",), "sums")
    ]
    assert load(tmp_path, "exact_match", '{"prompt": "1+1=", "answer": ["2", "two"]}') == [
        Question(1, "1+1=", ("2", "two"))
    ]
    for metric in ("acc", "acc_norm"):
        assert load(tmp_path, metric, '{"prompt": "", "choices": ["a", " b"], "answer": 1, "id": 7}') == [
            MultipleChoice(1, "", ("a", " b"), 1)
        ]
    assert load(tmp_path, "perplexity", '{"text": "abc", "skill": null}') == [Text(1, "abc")]


def test_lines_end_at_newlines_only_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    content = '\ufeff{"text": "a\u2028b"}\r\n\n  \n{"text": "c"}'
    assert load(tmp_path, "perplexity", content) == [Text(1, "a\u2028b"), Text(4, "c")]


@pytest.mark.parametrize(
    ("metric", "line", "said"),
    [
        ("exact_match", '{"prompt": "a", "answer": "b"', "not JSON"),
        ("exact_match", b'{"prompt": "\xff", "answer": "b"}', "not UTF-8"),
        ("exact_match", "[" * 100_000, "not JSON"),
        ("exact_match", '["a", "b"]', "JSON object"),
        ("exact_match", '{"answer": "b"}', 'no "prompt"'),
        ("exact_match", '{"prompt": " ", "answer": "b"}', "empty"),
        ("exact_match", '{"prompt": 3, "answer": "b"}', '"prompt" holds 3'),
        ("exact_match", '{"prompt": "a"}', 'no "answer"'),
        ("exact_match", '{"prompt": "a", "answer": 42}', '"answer" holds 42'),
        ("exact_match", '{"prompt": "a", "answer": []}', "at least one"),
        ("exact_match", '{"prompt": "a", "answer": ["b", null]}', '"answer" holds null'),
        ("exact_match", '{"prompt": "a\\ud800", "answer": "b"}', "not Unicode"),
        ("exact_match", '{"prompt": "a", "answer": "b", "skill": 1}', '"skill" holds 1'),
        ("acc", '{"prompt": "a", "answer": 0}', 'no "choices"'),
        ("acc", '{"prompt": "a", "choices": "bc", "answer": 0}', "at least two"),
        ("acc", '{"prompt": "a", "choices": ["b"], "answer": 0}', "at least two"),
        ("acc", '{"prompt": "a", "choices": ["b", ""], "answer": 0}', "empty"),
        ("acc", '{"prompt": "a", "choices": ["b", "c"], "answer": 2}', "0 to 1"),
        ("acc", '{"prompt": "a", "choices": ["b", "c"], "answer": -1}', "0 to 1"),
        ("acc_norm", '{"prompt": "a", "choices": ["b", "c"], "answer": true}', "0 to 1"),
        ("acc_norm", '{"prompt": "a", "choices": ["b", "c"], "answer": "b"}', "0 to 1"),
        ("acc", '{"prompt": "a", "choices": ["b", "c", "b"], "answer": 0}', "more than once"),
        ("perplexity", '{"prompt": "a"}', 'no "text"'),
    ],
)
def test_a_malformed_line_is_named_with_what_is_wrong(
    tmp_path: Path, metric: MetricName, line: str | bytes, said: str
) -> None:
    content = line if isinstance(line, bytes) else line.encode()
    (message,) = messages(tmp_path, metric, b"\n" + content)
    assert message.startswith("line 2: ")
    assert said in message
    assert len(message) < 200


def test_all_mistakes_are_told_at_once_up_to_twenty(tmp_path: Path) -> None:
    few = messages(tmp_path, "perplexity", '{"text": 1}\n{"text": "fine"}\n{}\n')
    assert [message[:7] for message in few] == ["line 1:", "line 3:"]
    many = messages(tmp_path, "perplexity", "{}\n" * 33)
    assert len(many) == 21
    assert "13 more" in many[-1]


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_items_is_refused(tmp_path: Path, content: str) -> None:
    (message,) = messages(tmp_path, "acc", content)
    assert "no items" in message


def test_an_item_twice_in_a_split_is_refused_with_both_lines(tmp_path: Path) -> None:
    lines = ['{"text": "a"}', '{"text": "b"}', '{"text": " a"}']
    assert messages(tmp_path, "perplexity", "\n".join(lines)) == ["line 3: the same item as line 1; remove one of them"]
    same = [{"prompt": "p", "choices": ["x", "y"], "answer": 0}, {"prompt": "p", "choices": ["y", "x"], "answer": 1}]
    assert "line 2" in messages(tmp_path, "acc", "\n".join(map(json.dumps, same)))[0]
    other = [same[0], {"prompt": "p", "choices": ["x", "z"], "answer": 0}]
    assert len(load(tmp_path, "acc", "\n".join(map(json.dumps, other)))) == 2


def test_overlap_names_the_lines_of_every_pair_of_splits() -> None:
    splits: dict[SplitName, list[Item]] = {
        "search": [Text(1, "a"), Text(2, "b")],
        "select": [Text(1, "c"), Text(5, "b ")],
        "test": [Text(1, "d"), Text(2, "c"), Text(3, "a")],
    }
    problems = overlap({"o": splits})
    assert [problem.path for problem in problems] == ["objectives.o.select", "objectives.o.test", "objectives.o.test"]
    assert "line 5 (line 2 there)" in problems[0].message
    assert "search" in problems[1].message
    assert "line 3 (line 1 there)" in problems[1].message
    assert "select" in problems[2].message
    assert "line 2 (line 1 there)" in problems[2].message
    assert overlap({"o": {"search": [Text(1, "a")], "select": [Text(1, "b")]}}) == []


def test_overlap_is_told_between_objectives_where_the_splits_differ() -> None:
    """Two objectives may judge the same items of one split, by two metrics for one."""
    one: dict[SplitName, list[Item]] = {"search": [Text(1, "a")], "test": [Text(1, "b")]}
    other: dict[SplitName, list[Item]] = {"search": [Text(1, "a")], "test": [Text(1, "b"), Text(4, "a")]}
    assert [(p.path, p.message.partition(";")[0]) for p in overlap({"one": one, "other": other})] == [
        ("objectives.other.test", "also in the search split of objective one: line 4 (line 1 there)"),
        ("objectives.other.test", "also in the search split: line 4 (line 1 there)"),
    ]


def test_a_long_overlap_is_counted() -> None:
    items = [Text(line, str(line)) for line in range(1, 31)]
    (problem,) = overlap({"o": {"search": items, "test": items}})
    assert "and 10 more" in problem.message
