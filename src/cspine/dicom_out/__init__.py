"""Answers about studies as DICOM objects."""
