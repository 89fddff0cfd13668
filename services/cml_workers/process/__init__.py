"""A process: which roles there are, what it opens or embeds for them, how it ends."""
