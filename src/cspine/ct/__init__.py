"""CT studies from DICOM and NIfTI: a volume in HU, or the reason why not."""
