"""MR simulated from CT."""
