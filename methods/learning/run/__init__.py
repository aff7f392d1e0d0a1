"""This package runs a training: what is trained, the stages that train it, the state that a killed run goes on from."""
