"""From records and models to numbers, tables and plots. Never trains."""
