"""Pixels in, pixels out: NumPy and OpenCV only."""
