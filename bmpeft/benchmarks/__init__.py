"""What `bmpeft bench` measures."""
