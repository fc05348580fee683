"""Runs in processes of their own: on this machine or on a cluster, with one live view."""
