"""Text as it arrives: its encoding, its language, its normal form."""
