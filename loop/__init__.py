"""The run directory and its stages, the settings, the evaluation and the report.

Knows the rows that the packages exchange, but no tensor arithmetic and no text format of its own.
"""
