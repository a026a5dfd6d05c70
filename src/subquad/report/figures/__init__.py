"""What the page draws: each figure with its words, its table and its data."""
