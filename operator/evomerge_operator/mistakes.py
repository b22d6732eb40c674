"""Mistakes by the fields of the manifest: the same for `evomerge validate` and for the status that kubectl shows."""

from evomerge_contract.manifest import BASE, SPLITS, EvoMergeSpec
from evomerge_contract.problems import in_words
from evomerge_contract.report import Report


def in_fields(report: Report, spec: EvoMergeSpec) -> Report:
    """The report with its problems, and its message where there are problems, by the fields of the manifest."""
    if not report.problems:
        return report
    problems = [problem.model_copy(update={"path": field_of(problem.path, spec)}) for problem in report.problems]
    return report.model_copy(
        update={"problems": problems, "message": in_words(problems, left_out=report.left_out or 0)}
    )


def field_of(path: str, spec: EvoMergeSpec) -> str:
    """The manifest's field for a worker's path: `models.<name>…`, `base…` or `objectives.<name>.<split or field>…`.

    Any other path is returned as it is.
    """
    kind, _, rest = path.partition(".")
    name, _, further = rest.partition(".")
    if kind == BASE:
        return _joined("spec.base.uri" if spec.base is not None else "spec.base", rest)
    if kind == "models":
        index = next((i for i, model in enumerate(spec.models) if model.name == name), None)
        return path if index is None else _joined(f"spec.models[{index}].uri", further)
    if kind == "objectives":
        index = next((i for i, one in enumerate(spec.evaluation.objectives) if one.name == name), None)
        if index is None:
            return path
        evaluator = spec.evaluation.objectives[index].evaluator_name
        group = f".{evaluator}" if further.partition(".")[0] in SPLITS else ""
        return _joined(f"spec.evaluation.objectives[{index}]{group}", further)
    return path


def _joined(field: str, further: str) -> str:
    return f"{field}.{further}" if further else field
