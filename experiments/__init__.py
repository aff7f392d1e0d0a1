"""The road of a cell: plan, stages, executors, resume and provenance."""

if __name__ != "prunebench.experiments":
    raise ImportError(
        "import prunebench.experiments, not experiments: the folders at the top of the repository have no names of their own."
    )
