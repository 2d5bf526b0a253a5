"""The stages of an experiment, from data to results."""
