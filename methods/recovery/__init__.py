"""What happens to every pruned model after slicing, the same for all methods."""

from prunebench.methods.recovery.lora import LoraRecoveryConfig, Recovered, recover_lora

__all__ = ["LoraRecoveryConfig", "Recovered", "recover_lora"]
