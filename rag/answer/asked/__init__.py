"""What a question says about its answer before anything is read."""
