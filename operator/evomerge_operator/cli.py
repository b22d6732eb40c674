"""The `evomerge` command: run, validate, plan, merge, report."""

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from evomerge_contract.exits import EXIT_INTERRUPTED
from evomerge_contract.problems import in_rows
from evomerge_operator.errors import EvoMergeError, InputError

_FILE = click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
_WORKERS = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Worker processes side by side. Default: spec.parallelism, as far as cores or GPUs go.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="evomerge")
def app() -> None:
    """Evolve a merge of existing models.

    A manifest names source models, an evaluation and a budget; EvoMerge searches over mergekit recipes, judges each
    merged model by your own items, and leaves the best one with the numbers that prove it.

    Start with:  evomerge run examples/quickstart/evomerge.yaml
    """


@app.command()
@_FILE
@click.option("--out", type=click.Path(path_type=Path), help="The run's directory. Default: runs/<metadata.name>.")
@_WORKERS
def run(file: Path, out: Path | None, workers: int | None) -> None:
    """Run the search of the manifest FILE.

    The run's directory receives the log, best/ (the winner, a Hugging Face checkpoint), recipe.yaml and report.html.
    Interrupted, by Ctrl-C or by a reboot, the same command goes on where it was.
    """
    from evomerge_operator.local.run import run_manifest
    from evomerge_operator.local.terminal import Terminal, stdout_console
    from evomerge_operator.local.workers import default_workers
    from evomerge_operator.manifest import load_manifest

    manifest = load_manifest(file)
    terminal = Terminal(stdout_console())
    directory = out or Path("runs") / manifest.metadata.name
    try:
        run_manifest(manifest, str(file), directory, workers or default_workers(manifest.spec), terminal)
    finally:
        terminal.close()


@app.command()
@_FILE
@click.option("--schema-only", is_flag=True, help="Check the manifest alone; do not open models and data.")
def validate(file: Path, schema_only: bool) -> None:
    """Find every mistake in the manifest FILE.

    Also opens the models and data that it names and checks that they fit together. Runs nothing.
    """
    from evomerge_operator.local.preview import check
    from evomerge_operator.manifest import load_manifest

    manifest = load_manifest(file)
    if not schema_only:
        with tempfile.TemporaryDirectory() as folder:
            for line in check(manifest, str(file), Path(folder)):
                click.echo(line)
    click.echo(f"{file}: no mistakes found" + (" (models and data were not opened)" if schema_only else ""))


@app.command()
@_FILE
@_WORKERS
def plan(file: Path, workers: int | None) -> None:
    """Show what `evomerge run FILE` would do.

    Dimensions, candidates, bytes, and how long it would take: the plain average is evaluated to measure that.
    """
    from evomerge_operator.local.preview import preview
    from evomerge_operator.local.workers import default_workers
    from evomerge_operator.manifest import load_manifest

    manifest = load_manifest(file)
    with tempfile.TemporaryDirectory() as folder:
        for line in preview(manifest, str(file), workers or default_workers(manifest.spec), Path(folder)):
            click.echo(line)


@app.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random masks.")
def merge(recipe: Path, out: Path, seed: int) -> None:
    """Merge RECIPE, a mergekit configuration, into the new folder OUT.

    Models in the recipe are folders (relative to the recipe's), s3:// URIs, or hub models: org/name@commit,
    or org/name, which stands for the commit that it has now and is shown;
    behind each may stand a LoRA adapter: model+adapter.
    """
    from evomerge_operator.local.worker_command import merge_by_hand

    try:
        sys.exit(merge_by_hand([str(recipe), str(out), str(seed)]))
    except KeyboardInterrupt:
        _say(f"evomerge: interrupted; {out} was not written, and the same command starts anew\n")
        sys.exit(EXIT_INTERRUPTED)


@app.command()
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
def report(run_directory: Path) -> None:
    """Draw the report of the run in the directory RUN again.

    Works on a run that is still going, or was interrupted, too.
    """
    from evomerge_operator.local.redraw import redraw

    click.echo(redraw(run_directory))


def main() -> None:
    """The console command."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as after Ctrl-C: tidily
    with _one_sentence():
        # Not standalone: click would turn Ctrl-C into "Aborted!" and exit code 1.
        app(standalone_mode=False)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn errors into words and an exit code; an exception that is none of ours is a bug and keeps its traceback."""
    try:
        yield
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except InputError as error:
        _say(in_rows(error.source, error.problems))
        sys.exit(error.exit_code)
    except EvoMergeError as error:
        _say(f"evomerge: {error}\n")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say("evomerge: interrupted; the same command goes on where it was\n")
        sys.exit(EXIT_INTERRUPTED)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    main()
