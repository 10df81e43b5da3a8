"""`slm bench train`: fine-tuning here and by its peers, each in a process of its own, on the same token ids."""
