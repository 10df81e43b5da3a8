"""Documents -> chunks -> vectors and words on disk, and the search in them."""
