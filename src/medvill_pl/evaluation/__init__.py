"""What results mean: pure functions over per-example results, from metrics to tables."""
