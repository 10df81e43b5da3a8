"""Conversations as models read them: templates, system texts, tools, control tokens."""
