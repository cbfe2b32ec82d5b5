"""From an image to a measured lesion, over any runtime."""
