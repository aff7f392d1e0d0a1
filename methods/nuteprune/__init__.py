"""NutePrune learns masks by distillation from numerous teachers, which are the model's own past selves (arXiv 2402.09773)."""
