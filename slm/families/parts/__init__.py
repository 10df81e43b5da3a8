"""What families are made of: rules, transforms, rotary embeddings, gated layers."""
