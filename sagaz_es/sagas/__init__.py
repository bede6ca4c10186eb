"""What an author writes and is handed: saga classes, steps, contexts, hooks, results."""
