"""The commands of this room, a file each; heavy imports stand inside their bodies."""
