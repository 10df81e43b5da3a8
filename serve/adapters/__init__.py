"""The adapters by name: checked, copied, watched for changes."""
