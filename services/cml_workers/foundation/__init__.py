"""What every room may use: kinds of failures, ending tasks, private files, URLs."""
