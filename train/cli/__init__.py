"""The commands of this room, a file each, and the options they share."""
