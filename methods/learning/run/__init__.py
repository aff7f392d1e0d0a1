"""A training run: what is trained, the stages that train it, and the state that a killed run goes on from."""
