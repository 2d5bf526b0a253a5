"""`cspine card`: model cards and reporting checklists of a run that is finished. No torch here."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from cspine.comparison.describe import complete_results
from cspine.errors import InputError
from cspine.reporting.documents import write_documents
from cspine.reporting.report import REPORT_FILE, RESULTS_FILE, read_results


def run_card(run: Path, output: Path | None) -> None:
    """Write the documents of a run and print where they are.

    Args:
        run: The folder that `cspine compare` wrote.
        output: Where they go; None is the run itself.

    Raises:
        InputError: the folder is no finished run, or its results cannot be read.
        OutputError: the output cannot be written.
    """
    if not (run / RESULTS_FILE).is_file():
        what = (
            "there is no such folder"
            if not run.exists()
            else f"this is no finished run: it has no {RESULTS_FILE}"
        )
        raise InputError(what, where=str(run), fix="name the folder that `cspine compare` wrote")
    results = complete_results(read_results(run), run)
    output = run if output is None else output
    linked = output.exists() and output.samefile(run) and (run / REPORT_FILE).is_file()
    console = Console()
    for path in write_documents(results, output, REPORT_FILE if linked else None):
        console.print(escape(str(path)), soft_wrap=True, highlight=False)
