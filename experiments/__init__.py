"""The road of a cell: plan, stages, executors, resume and provenance."""
