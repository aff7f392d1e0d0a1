"""Parts that methods which learn their masks share: gates, expected size, Lagrangian, schedules, hardening, training loop."""
