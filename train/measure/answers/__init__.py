"""What a model says to questions whose answers can be checked: the questions, the rules, the asking, the counts."""
