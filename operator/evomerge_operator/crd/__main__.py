"""`make crds`: write crds/ and the chart's copy, from the repository's root."""

from pathlib import Path

from evomerge_operator.crd.definitions import chart_files, files

CRDS = Path("crds")
CHART = Path("charts/evomerge/files/crds")


def main() -> None:
    """Write every file that is generated."""
    for folder, texts in ((CRDS, files()), (CHART, chart_files())):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
