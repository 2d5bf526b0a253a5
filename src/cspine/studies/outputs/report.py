"""The answer as a Structured Report: TID 1500, in a Comprehensive SR (PS3.16 A, PS3.3 A.35.3).

One measurement group is about the cervical spine: the probability of a fracture, the call, and the slices that carry
it. Where a segmentation names the vertebrae, one more group is about each.
"""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.sr import (
    AlgorithmIdentification,
    ComprehensiveSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

import cspine
from cspine.studies.answer import Abstention, StudyAnswer
from cspine.studies.dicom_header import Frame
from cspine.studies.outputs.identity import CHARACTER_SET, MANUFACTURER, NOTICE, Deidentify, Identity
from cspine.studies.outputs.source import SourceSeries, make_references

FRACTURE = Code("125605004", "SCT", "Fracture of bone")
CALLS = {
    "fracture": codes.SCT.Present,
    "no fracture": codes.SCT.Absent,
    "abstained": codes.SCT.Indeterminate,
}
LEVELS = {
    "C1": codes.SCT.C1Vertebra,
    "C2": codes.SCT.C2Vertebra,
    "C3": codes.SCT.C3Vertebra,
    "C4": codes.SCT.C4Vertebra,
    "C5": codes.SCT.C5Vertebra,
    "C6": codes.SCT.C6Vertebra,
    "C7": codes.SCT.C7Vertebra,
}
_DECIMALS = 6
# The details of intake quote names of files and values of headers; these sentences do not.
_WITHOUT_DETAIL = {
    Abstention.INTAKE_REFUSED: "intake refused the series",
    Abstention.UNFIT_RECIPE: "the model's recipe does not fit the series",
    Abstention.OUT_OF_DISTRIBUTION: "the study lies too far from what the model was trained on",
}
# Who observed: one UID for each version, the same for ever (PS3.5 B.2; no machine or person is named).
_DEVICE_ROOT = Deidentify("cspine device observer")


def make_report(
    identity: Identity, source: SourceSeries, answer: StudyAnswer, *, series_number: int, content: str
) -> Dataset:
    """Make the report; `content` is what UIDs follow from where they are to be the same in every run."""
    algorithm = _identify_algorithm(answer)
    groups = [_make_study_group(identity, source, answer, algorithm, content)]
    groups += [
        _make_level_group(identity, level, prob, algorithm, content)
        for level, prob in sorted(answer.level_probs.items())
    ]
    measurements = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_name_device()),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    for text in _list_comments(identity, answer):
        measurements[0].ContentSequence.append(_make_comment(text))
    # The whole series is what was looked at; the first of it brings patient and study.
    evidence = [identity.map_reference(one) for one in make_references(source.frames)]
    report = ComprehensiveSR(
        evidence=[identity.header, *evidence],
        content=measurements[0],
        series_instance_uid=identity.make_uid("report series", content),
        series_number=series_number,
        sop_instance_uid=identity.make_uid("report", content),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name="cspine",
        software_versions=cspine.__version__,
        device_serial_number=cspine.__version__,
        series_description=f"cspine report - {NOTICE}"[:64],
        content_date=identity.created.date(),
        content_time=identity.created.time(),
        is_complete=True,
        specific_character_set=CHARACTER_SET,
    )
    identity.finish(report)
    return report


def _identify_algorithm(answer: StudyAnswer) -> AlgorithmIdentification:
    parameters = [f"checkpoint={digest}" for digest in answer.checkpoint_hashes]
    parameters += [f"threshold={answer.threshold:.{_DECIMALS}g}", f"aggregation={answer.aggregation}"]
    return AlgorithmIdentification(
        name="cspine", version=cspine.__version__, parameters=parameters, manufacturer=MANUFACTURER
    )


def _name_device() -> ObserverContext:
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=_DEVICE_ROOT.map_uid(cspine.__version__),
            name="cspine",
            manufacturer_name=MANUFACTURER,
            model_name=f"cspine {cspine.__version__}",
        ),
    )


def _make_study_group(
    identity: Identity,
    source: SourceSeries,
    answer: StudyAnswer,
    algorithm: AlgorithmIdentification,
    content: str,
) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=identity.make_uid("tracking", content), identifier="cspine: cervical spine"
        ),
        finding_type=FRACTURE,
        finding_sites=[FindingSite(codes.SCT.CervicalSpine)],
        algorithm_id=algorithm,
        measurements=[] if answer.prob is None else [_measure(answer.prob)],
        qualitative_evaluations=[QualitativeEvaluation(FRACTURE, CALLS[answer.call])],
        source_images=[
            _reference(identity, frame)
            for frame in source.list_frames(answer.carrying if source.stack else ())
        ],
    )


def _make_level_group(
    identity: Identity, level: str, prob: float, algorithm: AlgorithmIdentification, content: str
) -> MeasurementsAndQualitativeEvaluations:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=identity.make_uid("tracking", level, content), identifier=f"cspine: {level}"
        ),
        finding_type=FRACTURE,
        finding_sites=[FindingSite(LEVELS[level])],
        algorithm_id=algorithm,
        measurements=[_measure(prob)],
    )


def _measure(prob: float) -> Measurement:
    return Measurement(name=codes.DCM.Probability, value=round(prob, _DECIMALS), unit=codes.UCUM.NoUnits)


def _reference(identity: Identity, frame: Frame) -> SourceImageForMeasurementGroup:
    return SourceImageForMeasurementGroup(
        referenced_sop_class_uid=str(frame.sop_class),
        referenced_sop_instance_uid=identity.map_uid(str(frame.sop_uid)),
        referenced_frame_numbers=None if frame.index is None else [frame.index + 1],
    )


def _list_comments(identity: Identity, answer: StudyAnswer) -> Sequence[str]:
    texts = [f"{NOTICE}. The output of research software; it is no diagnosis and nobody has verified it."]
    for one in answer.abstentions:
        detail = one.detail if identity.deidentify is None else _WITHOUT_DETAIL[one.reason]
        texts.append(f"No call is made ({one.reason}): {detail}")
    return texts


def _make_comment(text: str) -> TextContentItem:
    return TextContentItem(
        name=codes.DCM.Comment, value=text, relationship_type=RelationshipTypeValues.CONTAINS
    )
