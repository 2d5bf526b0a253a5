"""`cspine`: the commands, and what they exit with.

0: done. 1: the result says no. 2: bad input, one clear message. 130: interrupted; `--resume` continues.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cspine.cli.claims import claims, rsna_score
from cspine.cli.commands import NegativeClass, PositiveClass, explain, export, predict
from cspine.core.errors import CspineError, InputError

# Threads that wait for each other spin for long as OpenMP comes: on a machine with other work that makes training many
# times slower. These spin for microseconds and then sleep, as fast on a quiet machine (docs/log.md). OpenMP reads this
# when torch is loaded, so it has to be set before.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

INTERRUPTED = 130
_RESUMES = "; the same command with --resume continues where it stopped"
_HOW_TO_RESUME = {
    "compare": _RESUMES,
    "train": _RESUMES,
    "demo": "; the same command continues where it stopped",
    "predict": "; answers about studies are kept, and the same command with --resume continues",
}

app = typer.Typer(
    name="cspine",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, compare and audit classifiers of cervical spine fractures on CT. "
    "Research software: not for clinical use.",
    epilog="Example: cspine demo -o runs/demo",
)
info_app = typer.Typer(
    invoke_without_command=True,
    help="Versions of cspine and of what it stands on; its models.",
    epilog="Example: cspine info models",
)
app.add_typer(info_app, name="info")


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"cspine {version('cspine')}")
        raise typer.Exit


@app.callback()
def cspine(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train, compare and audit classifiers of cervical spine fractures on CT."""


Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field, such as training.epochs=3."),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in the output folder.")]


@app.command(epilog="Example: cspine demo -o runs/demo")
def demo(
    output: Output = Path("runs/demo"),
    overrides: Overrides = None,
    fresh: bool = typer.Option(False, help="Start anew."),
) -> None:
    """Make the phantom set, train the three models on it and write the report."""
    from cspine.cli.run import run_demo_command

    run_demo_command(output, overrides or [], fresh)


@app.command("import", epilog="Example: cspine import studies/ -o set/ --labels labels.csv")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            help="Pictures: a folder of class folders, or a table of labels. CT studies: DICOM (file, folder, "
            "DICOMDIR, zip), NIfTI (file, folder), or the folder of the RSNA 2022 challenge."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Pictures: manifest.parquet. CT studies: a new folder, imported by default.",
        ),
    ] = None,
    source_format: Annotated[
        str, typer.Option("--format", help="auto, pictures, dicom, nifti or rsna.")
    ] = "auto",
    labels: Annotated[
        Path | None, typer.Option("--labels", help="CT studies: a table of labels by slice, series or study.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="CT studies: what to refuse, correct or warn of (TOML).")
    ] = None,
    positive_class: PositiveClass = "fracture",
    negative_class: NegativeClass = "normal",
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Refuse the set if any image cannot be read, or any series is refused."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Read labelled slices or CT studies into a manifest, and print what was taken, and what was refused and why."""
    from cspine.cli.data import run_import

    run_import(
        source,
        output,
        source_format=source_format,
        labels=labels,
        policy=policy,
        positive_class=positive_class,
        negative_class=negative_class,
        strict=strict,
        as_json=as_json,
    )


@app.command(epilog="Example: cspine audit kaggle/ -o audit.html")
def audit(
    source: Annotated[
        Path, typer.Argument(help="A manifest, a folder of slices, a table of labels, or a finished run.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write a page here (HTML).")] = None,
    fix: Annotated[
        Path | None,
        typer.Option(
            "--fix", metavar="MANIFEST", help="Write a repaired manifest here, and list every change."
        ),
    ] = None,
    positive_class: PositiveClass = "fracture",
    negative_class: NegativeClass = "normal",
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
) -> None:
    """Find copies, leaks, anomalies and shortcuts in a set; exit 1 where they would invalidate a comparison."""
    from cspine.cli.data import run_audit

    result = run_audit(source, output, fix, as_json, (positive_class, negative_class))
    raise typer.Exit(1 if result.verdict == "not evidence" else 0)


@app.command(epilog="Example: cspine split repaired.parquet -o folds/ --scheme kfold --folds 5 --seed 1")
def split(
    source: Annotated[Path, typer.Argument(help="A manifest, a folder of slices, or a table of labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder: one manifest a fold.")],
    scheme: Annotated[
        str, typer.Option(help="holdout, kfold, or leave-one-out (each group in turn).")
    ] = "holdout",
    folds: Annotated[int, typer.Option(help="Parts of kfold.")] = 5,
    test_fraction: Annotated[float, typer.Option(help="Of holdout.")] = 0.2,
    by: Annotated[
        str,
        typer.Option(
            help="Kept together: auto is the patient, else study, series, source slice, copies by pixels."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Do it again with other seeds.")] = 1,
    positive_class: PositiveClass = "fracture",
    negative_class: NegativeClass = "normal",
) -> None:
    """Divide a set by whole groups, both classes in proportion; refused with the counts where that is impossible."""
    from cspine.cli.data import run_split
    from cspine.data.splits import SCHEMES

    if scheme not in SCHEMES:
        raise InputError(
            f"no such scheme: {scheme}", where="--scheme", fix=f"choose one of {', '.join(SCHEMES)}"
        )
    run_split(
        source,
        output,
        scheme=scheme,
        folds=folds,
        test_fraction=test_fraction,
        by=by,
        seed=seed,
        repeats=repeats,
        positive_class=positive_class,
        negative_class=negative_class,
    )


@app.command(
    "contact-sheet", epilog="Example: cspine contact-sheet experiments/paper.toml --set data.root=kaggle/"
)
def contact_sheet(
    experiment: Annotated[Path, typer.Argument(help="An experiment file.")],
    output: Output = Path("contact-sheet.png"),
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, max=50, help="How many slices.")] = 6,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Draw one slice under every corruption of the experiment.")
    ] = False,
) -> None:
    """Draw slices before and after preprocessing and augmentation, as one picture."""
    from cspine.cli.run import draw_sheet

    draw_sheet(experiment, overrides or [], output, count, corruptions=corruptions)


@app.command(epilog="Example: cspine phantom phantom/ --patients 60 --size-px 224 --seed 1")
def phantom(
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    patients: int = 60,
    slices_per_patient: int = 12,
    fracture_fraction: Annotated[
        float, typer.Option(help="Of the patients; half the slices of such a patient show a fracture.")
    ] = 0.6,
    size_px: int = 224,
    field_of_view_mm: float = 130.0,
    slice_spacing_mm: Annotated[
        float, typer.Option(help="Of volumes and series; png has no use for it.")
    ] = 1.0,
    conspicuity: Annotated[float, typer.Option(help="How plain the fractures are; 1 is realistic.")] = 1.0,
    seed: int = 0,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="png (8-bit slices), nifti (volumes in HU, with masks), dicom (whole CT series), or rsna (the "
            "layout of the RSNA 2022 challenge).",
        ),
    ] = "png",
) -> None:
    """Make a set of procedural necks whose truth is known."""
    from cspine.cli.data import run_phantom
    from cspine.phantom.patient import PhantomSettings

    settings = PhantomSettings(
        patients=patients,
        slices_per_patient=slices_per_patient,
        fracture_fraction=fracture_fraction,
        size_px=size_px,
        field_of_view_mm=field_of_view_mm,
        fracture_conspicuity=conspicuity,
        seed=seed,
    )
    run_phantom(output, settings, file_format, slice_spacing_mm)


@app.command(
    epilog="Example: cspine train experiments/paper.toml --model resnet50 --set data.root=kaggle/ -o runs/r50"
)
def train(
    experiment: Annotated[Path, typer.Argument(help="An experiment file.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Which of its models.")],
    output: Output,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train one model of an experiment; the folder gets its checkpoint, history and TensorBoard events."""
    from cspine.cli.run import run_training

    run_training(experiment, model, overrides or [], output, resume)


app.command(epilog="Example: cspine predict studies/ -c model.safetensors -o answers/")(predict)


@app.command(
    "fit-studies",
    epilog="Example: cspine fit-studies model.safetensors folds/holdout.parquet --selection val",
)
def fit_studies(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of cspine.")],
    source: Annotated[
        Path, typer.Argument(help="The set that it was trained on: a manifest with series and splits.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where it goes; over the checkpoint unless told.")
    ] = None,
    train: Annotated[str, typer.Option(help="The split that it was trained on.")] = "train",
    selection: Annotated[
        str, typer.Option(help="The split to fit on; report on none that this fit has seen.")
    ] = "val",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Teach a model to answer about studies: how slices become one answer, and which lie too far from it."""
    from cspine.cli.studies import run_fit_studies

    run_fit_studies(checkpoint, source, output, train=train, selection=selection, seed=seed, as_json=as_json)


app.command(epilog="Example: cspine export checkpoint.safetensors --to openvino")(export)


@app.command(epilog="Example: cspine evaluate test.parquet --calibrate-on val.parquet -o metrics.json")
def evaluate(
    predictions: Annotated[list[Path], typer.Argument(help="Tables that cspine predict wrote.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write JSON here.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="prob >= this is a fracture.")] = 0.5,
    draws: Annotated[int, typer.Option(min=40, max=100_000, help="Bootstrap draws.")] = 2000,
    unit: Annotated[
        str, typer.Option(help="What the bootstrap draws: auto or a column such as patient_id.")
    ] = "auto",
    seed: int = 0,
    calibrate_on: Annotated[
        list[Path] | None,
        typer.Option(
            help="Validation predictions by the same checkpoint: thresholds and calibrations come from these."
        ),
    ] = None,
) -> None:
    """Print every metric with its 95% interval; positive is `fracture`."""
    from cspine.cli.screen import show_evaluations
    from cspine.core.files import refuse_to_replace, write_json
    from cspine.core.predictions import read_predictions
    from cspine.metrics.evaluation import evaluate_table
    from cspine.metrics.intervals import IntervalOptions

    if output:
        refuse_to_replace(output, *predictions, *(calibrate_on or ()))
    tables = [read_predictions(path) for path in predictions]
    options = IntervalOptions(draws, seed, unit=unit)
    found = [evaluate_table(table, threshold, options) for table in tables]
    rows = [item.model_dump(mode="json") for item in found]
    show_evaluations(found)
    if calibrate_on:
        from cspine.cli.screen import show_uses
        from cspine.metrics.clinical import assess_tables

        uses = assess_tables(tables, [read_predictions(path) for path in calibrate_on], threshold, options)
        show_uses(uses)
        for row, use in zip(rows, uses, strict=True):
            row["in_use"] = use.model_dump(mode="json")
    if any((table["split"] == "train").any() for table in tables):
        typer.echo("warning: slices of the train split are among these: models know them", err=True)
    if len({frozenset(table["slice_id"]) for table in tables}) > 1:
        typer.echo("warning: the tables are of different slices: their numbers cannot be compared", err=True)
    if output:
        write_json(output, rows)


@app.command(epilog="Example: cspine compare experiments/paper.toml --set data.root=kaggle/ -o runs/paper")
def compare(
    experiment: Annotated[Path, typer.Argument(help="An experiment file.")],
    output: Output,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train all models of an experiment, compare them and write report.html and results.json."""
    from cspine.cli.run import run_compare

    run_compare(experiment, overrides or [], output, resume)


@app.command(epilog="Example: cspine card runs/paper")
def card(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run of cspine compare.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write; the run itself unless told.")
    ] = None,
) -> None:
    """Write a model card for every model of a run, and CLAIM and TRIPOD+AI as far as the run can fill them."""
    from cspine.cli.screen import say
    from cspine.comparison.describe import write_run_documents

    for path in write_run_documents(run, output):
        say(str(path))


app.command(epilog="Example: cspine claims --positives 200 --negatives 200 --accuracy 97.50 --recall 0.47")(
    claims
)
app.command(epilog="Example: cspine explain set/ -c model.safetensors -o explained/ --split test")(explain)
app.command("rsna-score", epilog="Example: cspine rsna-score submission.csv --labels train.csv")(rsna_score)


@info_app.callback()
def info(context: typer.Context) -> None:
    """Versions of cspine and of what it stands on."""
    if context.invoked_subcommand is None:
        from cspine.cli.screen import show_versions

        show_versions()


@info_app.command("models", epilog="Example: cspine info models --diagrams figures/")
def info_models(
    diagrams: Annotated[Path | None, typer.Option(help="Draw each model's layers into this folder.")] = None,
) -> None:
    """List the models with their parameters and FLOPs; draw them where asked."""
    from cspine.cli.screen import show_models

    show_models()
    if diagrams:
        from cspine.cli.run import draw_diagrams

        draw_diagrams(diagrams)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every expected error becomes one message and an exit code, never a traceback."""
    try:
        app(args=arguments, standalone_mode=True)
    except CspineError as error:
        _fail(error)
    except SystemExit as stop:  # Typer turns Ctrl-C into the exit code without a word
        if stop.code == INTERRUPTED:
            command = (sys.argv[1:] if arguments is None else arguments)[:1]
            sys.stderr.write(f"interrupted{_HOW_TO_RESUME.get(''.join(command), '; nothing was written')}\n")
        raise
    except OSError as error:
        from cspine.core.files import explain_os_error

        _fail(explain_os_error(error, Path(error.filename or ".")))
    except MemoryError:
        _fail(
            InputError(
                "there is not enough memory", fix="lower training.batch_size or preprocess.image_size_px"
            )
        )


def _fail(error: CspineError) -> None:
    sys.stderr.write(f"error: {error}\n")
    raise SystemExit(error.exit_code)
