"""How the program and its user talk: notes, options, configuration, pipes, text files."""
