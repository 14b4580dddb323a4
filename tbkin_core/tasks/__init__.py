"""What a model is trained for: one row in `table` and one module per task."""
