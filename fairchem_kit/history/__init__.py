"""What a run records: history.jsonl, run.json, and what goes to W&B or TensorBoard."""
