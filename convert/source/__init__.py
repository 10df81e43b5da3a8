"""What is read: checkpoint folders, safetensors files, and how wrong they may be."""
