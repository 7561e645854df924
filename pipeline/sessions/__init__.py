"""What a session's events mean: checks against the image, and the fold that gives its state. No torch, no storage."""
