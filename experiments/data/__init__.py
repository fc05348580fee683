"""Images and annotations: found, checked, read, put in order; the embedded sets (mini/)."""
