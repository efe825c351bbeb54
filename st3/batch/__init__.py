"""Many questions, one answer each: sources of rows, batches of like length, a file that resumes."""
