"""What a run will take, before it runs; and losses of models that are there."""
