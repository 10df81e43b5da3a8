"""What a change does to an index, decided before anything is written: which documents come, stay, move and go."""
