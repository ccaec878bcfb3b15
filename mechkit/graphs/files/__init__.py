"""What a graph looks like without its model: files, pages and pictures of it."""
