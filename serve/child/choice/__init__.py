"""How the next token is chosen: sampling, grammars, JSON schemas, drafts."""
