"""The engine as the rest of the program sees it: the child process kept alive, prompts, routing."""
