"""What people look at: histories of runs, tables, pictures."""
