"""The experiments beside the loop: what would have happened without self-rewarding."""
