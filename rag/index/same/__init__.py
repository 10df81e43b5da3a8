"""What is the same though it is written otherwise: days, part numbers, whole texts."""
