"""LazyConfig files: what one training run is. Load one with detectron2's `LazyConfig.load`."""
