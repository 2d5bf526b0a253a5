"""The main job: from an experiment to a report. Each stage is skipped where its result is there already."""
