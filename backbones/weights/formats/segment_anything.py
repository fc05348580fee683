"""segment_anything."""
