"""How an answer looks on a terminal: Markdown as it streams, rows, tables, and what is written to draw them."""
