"""Read models: one folder a view; and what keeps them: generations of tables, the runner, the rebuild."""
