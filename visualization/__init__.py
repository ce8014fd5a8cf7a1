"""What a run shows: console, log files and pictures."""
