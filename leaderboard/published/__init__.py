"""Numbers that papers published, as data: one YAML file a paper, and what they may be compared with."""
