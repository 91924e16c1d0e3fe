"""The control loop: starts the automatic upgrades and repairs that are due."""
