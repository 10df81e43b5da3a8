"""How a batch is computed with as few multiplications as possible. Knows nothing of optimizers or of a run's ends."""
