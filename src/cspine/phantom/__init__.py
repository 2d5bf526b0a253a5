"""Drawn necks whose truth is known: slices, volumes, DICOM."""
