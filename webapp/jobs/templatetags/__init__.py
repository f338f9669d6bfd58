"""What only the templates of jobs need."""
