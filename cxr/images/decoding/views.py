"""What a DICOM header says of modality, body part and projection, and what is refused by it.

Texts are read and compared with fixed lists; none is kept, and reasons and warnings name what the
lists hold. A wrongly filled tag may hold the name of a patient.
"""

from typing import Any, Final

from cxr.images.decoding.anatomy import body_part, folded, projections
from cxr.images.decoding.tags import code, items, text
from cxr.images.decoding.verdict import Facts, RejectedError, View

# Computed radiography, digital radiography (DR: its retired code) and scanned film.
_RADIOGRAPHY = ("CR", "DX", "DR", "RG")

# The modalities that a reason may name.
_MODALITIES = (
    "CT ECG ES IO IVUS MG MR NM OCT OP OPT OT PR PT PX RF RTDOSE RTIMAGE RTPLAN RTSTRUCT SC SEG "
    "SM SR US XA XC"
)

MODALITIES = (*_RADIOGRAPHY, *_MODALITIES.split())

# From that of a single image to that of an examination, which may comprise several projections.
_DESCRIPTIONS = (
    "SeriesDescription",
    "ProtocolName",
    "AcquisitionDeviceProcessingDescription",
    "StudyDescription",
)


def refuse_other_modalities(header: Any, facts: Facts) -> None:
    """Refuse what is no radiograph."""
    modality = code(header, "Modality")
    if not modality:
        facts.warnings.append("no modality in the file")
    elif modality not in _RADIOGRAPHY:
        named = modality if modality in _MODALITIES.split() else "of another kind"
        raise RejectedError("refused", f"modality {named}, not CR, DX, DR or RG")


def refuse_other_body_parts(header: Any, facts: Facts, any_body_part: bool) -> None:
    """Refuse a known body part other than the chest; an unknown one is a warning.

    Source: Body Part Examined (PS3.16 annex L) and Anatomic Region Sequence (PS3.16 CID 4009).
    """
    texts = [text(header, "BodyPartExamined")]
    texts += [name for item in items(header, "AnatomicRegionSequence") for name in _names(item)]
    texts = [name for name in texts if folded(name) not in ("", "UNKNOWN", "NONE")]
    if not texts:
        facts.warnings.append("no body part in the file")
        return
    named = [part for part in map(body_part, texts) if part]
    others = [part for part in named if part != "CHEST"]
    if others and not any_body_part:
        raise RejectedError("refused", f"body part {others[0]}, not the chest")
    if not named:
        facts.warnings.append("an unknown body part in the file; taken as the chest")


def refuse_other_views(header: Any, facts: Facts, any_view: bool) -> None:
    """Refuse lateral and oblique views: the models are trained on frontal ones.

    View Position and View Code Sequence decide, in older files descriptions, in default of both the
    directions of rows and columns. A projection that is not given at all is taken as frontal.

    Source: PS3.3 sections C.8.1.2 and C.8.11.5, PS3.16 CID 4010.
    """
    coded = projections(text(header, "ViewPosition"))
    for item in items(header, "ViewCodeSequence"):
        coded.update(*map(projections, _names(item)))
    described = _described(header)
    view = _other(coded)
    if not coded:
        view = "" if "frontal" in described else _other(described)
        if not described and _is_turned(header):
            view = "lateral"
    named = coded or described
    facts.view = view or ("frontal" if "frontal" in named and not _other(named) else "")
    if view and not any_view:
        raise RejectedError("refused", f"{_ARTICLES[view]} {view} view, not a frontal one")
    if view:
        facts.warnings.append(f"{_ARTICLES[view]} {view} view")
    elif _other(described) and not (coded and "frontal" in described):
        facts.warnings.append("a description in the file names a view that is not frontal")
    if "decubitus" in coded | described:
        facts.warnings.append("a view in lateral decubitus")


_ARTICLES: Final[dict[View, str]] = {"lateral": "a", "oblique": "an"}


def _names(item: Any) -> list[str]:
    """Code and meaning of an item of a code sequence."""
    return [text(item, "CodeValue"), text(item, "CodeMeaning")]


def _other(named: set[str]) -> View:
    empty: View = ""
    return next((view for view in _ARTICLES if view in named), empty)


def _described(header: Any) -> set[str]:
    """The projections of the first description that names one kind of them, or of all of them."""
    named = [projections(text(header, keyword)) for keyword in _DESCRIPTIONS]
    one_sided = (views for views in named if views and not ("frontal" in views and _other(views)))
    return next(one_sided, set().union(*named))


def _is_turned(header: Any) -> bool:
    """Whether the rows of an upright picture run from front to back of the patient or reversed.

    Source: Patient Orientation, PS3.3 section C.7.6.1.1.1: directions of row and column.
    """
    try:
        row, column = header.get("PatientOrientation")
    except Exception:
        return False
    return str(row)[:1] in ("A", "P") and str(column)[:1] in ("F", "H")
