"""From words to the resolved config of a run, its checks and its identity."""
