"""Estimates with intervals, tests between models, calibration."""
