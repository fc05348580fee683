"""simple_vit."""
