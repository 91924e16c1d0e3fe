"""Upgrades: the planner decides, the engine acts."""
