"""LoRA adapters: fresh, opened, merged, combined, and text sampled from them."""
