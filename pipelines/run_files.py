"""What the files in a run's folder are called, beside `config.yaml` (config_files.py)."""

RUN_FILE = "run.json"
"""The MLflow run that the training is recorded in."""
COSTS_FILE = "costs.json"
"""The metrics ``system/...`` as of the last checkpoint, which they are no part of, so that two like
trainings have like checkpoints."""
JOURNAL_FILE = "metrics.jsonl"
"""Every point of the curves."""
