"""DICOM out: a study's answer as standard objects beside the series that it is about (docs/dicom-out.md)."""
