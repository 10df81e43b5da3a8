"""One generation of an index: its parts on disk, and what of them a reader holds in memory."""
