"""What the command line prints: tables for the terminal, and the same as plain data."""
